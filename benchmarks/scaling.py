"""How does the encoder's throughput grow with threads, texts in a batch and tokens in a text?

Drawn under the roof of the matrix units: the best large product of each dtype, in the same run,
through the same op. A dtype whose vectors are wrong is not drawn.
"""

import argparse
import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import engines
import measuring
import torch
import workloads
from bertron_backend.cores import usable_cores
from bertron_backend.encoder import Encoder
from checkpoints import encoder_settings, exported, minilm
from peers import PeersError, install
from transformers.utils import logging
from workloads import Batch, Workload

DTYPES = ("float32", "bfloat16", "int8")
TEXTS = (1, 2, 4, 8, 16, 32, 64)
TOKENS = (8, 16, 32, 64, 128, 256)
TEXTS_AT_TOKENS, TOKENS_AT_TEXTS = 32, 8  # what is held while the other grows
PASSES = 3  # over all points: another machine's load can last longer than a point
# Rows, inputs and outputs of the products that look for the roof: large, yet some fit a cache.
PRODUCTS = ((512, 512, 512), (1024, 1024, 1024), (2048, 2048, 2048), (1024, 384, 1536))
CSV_HEADINGS = ("dtype", "threads", "axis", "texts", "tokens", "tokens_per_s")


def points() -> list[tuple[str, int, int]]:
    """(what grows, texts, tokens)."""
    return [("texts", texts, TEXTS_AT_TOKENS) for texts in TEXTS] + [
        ("tokens", TOKENS_AT_TEXTS, tokens) for tokens in TOKENS
    ]


def best_rate(batch: Batch, encoder: Encoder, budget_s: float) -> float:
    """Tokens a second of the quickest call: noise only ever slows."""
    request = engines.token_request(batch)
    encoder.embed([request])
    return batch.input_ids.size / _quickest(lambda: encoder.embed([request]), budget_s)


def operands(dtype: str, inputs: int, outputs: int) -> tuple[torch.Tensor, ...]:
    """A packed weight, its scale and a bias."""
    wide = torch.randn(outputs, inputs)
    scale = None
    if dtype == "int8":
        scale = torch.full((outputs,), 0.01)
        wide = wide.mul(30).clamp(-127, 127).to(torch.int8)
    else:
        wide = wide.to(getattr(torch, dtype))
    bias = torch.zeros(outputs, dtype=torch.float32 if dtype == "float32" else torch.bfloat16)
    return torch.ops.bertron.pack_weight(wide, scale, None), scale, bias


def roof(dtype: str, budget_s: float) -> float:
    """Multiply-adds a second, times two, of the best large product; threads as set."""
    best = 0.0
    for rows, inputs, outputs in PRODUCTS:
        weight, scale, bias = operands(dtype, inputs, outputs)
        x = torch.randn(rows, inputs).to(bias.dtype)
        with torch.inference_mode():
            took = _quickest(
                lambda x=x, w=weight, s=scale, b=bias: torch.ops.bertron.linear(x, w, s, None, b),
                budget_s,
            )
        best = max(best, 2 * rows * inputs * outputs / took)
    return best


def _quickest(call: object, budget_s: float) -> float:
    times = []
    started = time.perf_counter()
    while len(times) < 2 or time.perf_counter() - started < budget_s:
        times.append(measuring.seconds(call))
    return min(times)


def operations_per_token(encoder: Encoder) -> int:
    """Of the matrix products; attention comes on top and grows with the text."""
    manifest = encoder.manifest
    # qkv and output: 4 E x E; the two of the feed-forward: 8 E x E, I being 4 E in MiniLM.
    return 2 * 12 * manifest.hidden_size**2 * manifest.num_layers


def main() -> None:
    """Check, measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.3, help="for a point in a pass")
    parser.add_argument("--results", type=Path, default=measuring.RESULTS)
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    checkpoint, busy = minilm(), measuring.load_average()
    texts, _source = workloads.read_texts(640)
    token_ids = workloads.tokenize(checkpoint.directory / "tokenizer.json", texts)
    loads = {(t, s): workloads.uniform(token_ids, t, s) for _, t, s in points()}
    check = workloads.real(token_ids[:64], texts[:64], by_length=False)
    expected = engines.transformers(checkpoint, "float32").vectors(check)

    lines, sections = [], []
    for dtype in DTYPES:
        repository = exported(checkpoint, dtype)
        for threads in sorted({1, usable_cores()}):
            settings = dataclasses.replace(encoder_settings(repository), intra_op_threads=threads)
            encoder = Encoder(repository / "bert" / "1", "cpu", settings)
            cosine = _cosine(encoder, check, expected)
            if not cosine >= measuring.REQUIRED_COSINE[dtype]:
                sections.append(f"{dtype}: not measured, cosine {cosine:.6f}")
                continue
            torch.set_num_threads(threads)
            ceiling = roof(dtype, args.seconds)
            rates = dict.fromkeys(points(), 0.0)
            for _ in range(PASSES):
                for point in rates:
                    batch = loads[point[1:]].batches[0]
                    rates[point] = max(rates[point], best_rate(batch, encoder, args.seconds))
            lines += [[dtype, threads, *point, f"{rate:.0f}"] for point, rate in rates.items()]
            ceiling = max(ceiling, roof(dtype, args.seconds))  # again: it must not be a noisy one
            top = ceiling / operations_per_token(encoder)
            lines.append([dtype, threads, "roof", "", "", f"{top:.0f}"])
            best = max(rates.values())
            sections.append(
                f"{dtype}, threads: {threads}; {ceiling / 1e9:.0f} GFLOP/s in the best product, "
                f"which is {top:.0f} tokens/s; reached {best:.0f}, {best / top:.0%}"
            )
            print(sections[-1], flush=True)
    body = "# Scaling, MiniLM-L6\n\n" + " ".join(__doc__.split()) + "\n\n![](scaling.png)\n\n"
    body += "\n".join(f"- {line}" for line in sections) + "\n\n" + _tables(lines)
    body += f"\n{measuring.setting()}. Load average before: {busy:.2f}.\n"
    measuring.write_results(args.results, "scaling", body, CSV_HEADINGS, lines)
    draw(args.results)


def _cosine(encoder: Encoder, check: Workload, expected: object) -> float:
    rows = [encoder.embed([engines.token_request(batch)])[0] for batch in check.batches]
    return measuring.smallest_cosine(
        torch.cat([torch.from_numpy(r) for r in rows]).numpy(), expected
    )


def _tables(lines: list[list]) -> str:
    """Thousands of tokens a second, a table an axis."""
    parts = []
    for axis, values, column in (("texts", TEXTS, 3), ("tokens", TOKENS, 4)):
        held = f"{TEXTS_AT_TOKENS} tokens each" if axis == "texts" else f"{TOKENS_AT_TEXTS} texts"
        rows = {}
        for line in lines:
            if line[2] == axis:
                threads = "1 thread" if line[1] == 1 else f"{line[1]} threads"
                cells = rows.setdefault(f"{line[0]}, {threads}", {})
                cells[line[column]] = f"{float(line[5]) / 1e3:.1f}"
        body = [[name, *(cells.get(value, "") for value in values)] for name, cells in rows.items()]
        headings = [f"thousand tokens/s by {axis}, {held}", *map(str, values)]
        parts.append(measuring.table(headings, body) + "\n")
    return "\n".join(parts)


def draw(results: Path) -> None:
    """``scaling.png`` from ``scaling.csv``, in the peers' environment: ours has no matplotlib."""
    script = Path(__file__).with_name("draw_scaling.py")
    try:
        command = [str(install()), str(script), str(results / "scaling.csv")]
        subprocess.run([*command, str(results / "scaling.png")], check=True, timeout=120)
    except (PeersError, OSError, subprocess.SubprocessError) as error:
        sys.stderr.write(f"no picture: {error}\n")


if __name__ == "__main__":
    main()
