"""How fast are the kernels and the models on this GPU, and which tiles would be faster?

Every row is checked against float64 on fresh random data before it is timed; one that is wrong has
no time, says FAILED and makes the exit code 1. Times stand beside PyTorch's own and beside what
this GPU does at best in the same run.
"""

import argparse
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).parents[1]
# A GPU machine has a PyTorch of its own, and perhaps no way to install us: the checkout serves.
SOURCES = ("client", "kernels", "loadtest", "python_backend", "server")
sys.path[1:1] = [str(ROOT / name) for name in SOURCES]

if TYPE_CHECKING:
    from gpu_report import Report
    from gpu_timing import Budget, Ceilings

# What each part gets of the time, in proportion to those that are left.
SHARES = {"kernels": 100, "models": 250, "tune": 110, "served": 90}
SECONDS = 550
FAILED, NO_GPU = 1, 2


def main() -> int:
    """Check, measure, print, write; the exit code."""
    args = parse(sys.argv[1:])
    cause = obstacle()
    if cause:
        print(f"bench_gpu needs a CUDA device: {cause}.", file=sys.stderr)
        return NO_GPU
    return run(args)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", nargs="+", choices=list(SHARES), default=list(SHARES), help="these parts"
    )
    parser.add_argument("--quick", action="store_true", help="few shapes, small ones")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all parts together")
    parser.add_argument("--seed", type=int, help="of the random data; else another each time")
    parser.add_argument("--commit", help="what is measured, where this is a copy without git")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    return parser.parse_args(arguments)


def obstacle() -> str:
    """Why nothing can be measured here, in a few words; empty where it can."""
    try:
        import torch
    except ImportError:
        return "PyTorch is not installed"
    if not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} finds none on this machine"
    try:
        import triton  # noqa: F401
    except ImportError:
        return "Triton, whose compiler makes the kernels, is not installed"
    return ""


def run(args: argparse.Namespace) -> int:
    """All parts, each in its share of the time, the files written anew after each."""
    import torch
    from gpu_report import Report
    from gpu_timing import Budget, OutOfTimeError, measure_ceilings

    total = Budget(args.seconds)
    seed = torch.seed() if args.seed is None else args.seed
    torch.manual_seed(seed)
    ceilings = measure_ceilings()
    report = Report(args.out, ceilings, args.commit)
    report.notes.append(f"Random data from seed {seed}.")
    parts = [part for part in SHARES if part in args.only]
    text, broke = "", False
    for number, part in enumerate(parts):
        share_s = total.left_s * SHARES[part] / sum(SHARES[name] for name in parts[number:])
        try:
            measure_part(part, Budget(share_s), report, ceilings, quick=args.quick)
        except OutOfTimeError:
            report.notes.append(f"{part}: {share_s:.0f} s did not suffice for all rows.")
        except Exception as error:  # the other parts are worth having
            broke = True
            traceback.print_exc()
            first = f"{type(error).__name__}: {error}".splitlines()[0]
            report.notes.append(f"FAILED: {part} broke: {first}")
        text = report.write()
    print(text)
    return FAILED if broke or report.failed else 0


def measure_part(
    part: str, budget: "Budget", report: "Report", ceilings: "Ceilings", *, quick: bool
) -> None:
    """One of SHARES."""
    l2_bytes, note = ceilings.l2_bytes, report.notes.append
    if part == "kernels":
        import gpu_kernels

        tokens = gpu_kernels.QUICK_TOKENS if quick else gpu_kernels.TOKENS
        gpu_kernels.measure_all(budget, l2_bytes, tokens, report.add)
    elif part == "models":
        import gpu_models

        gpu_models.measure_all(budget, report.add, note, quick=quick)
    elif part == "tune":
        import gpu_tune

        gpu_tune.measure_all(budget, l2_bytes, report.add, report.frozen.append)
    else:
        import gpu_served

        gpu_served.measure_all(budget, report.add, note, quick=quick)


if __name__ == "__main__":
    sys.exit(main())
