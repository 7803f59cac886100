"""What is left of the server's work when it is asked for much more than it can do?

Calls arrive at random, in an open loop, from clients that wait 2 s for an answer. The capacity is
what closed loops get with the same calls, the most of a ramp of users. Every answer is checked; the
load comes through the Python client and takes its part of the same cores, which it does not in the
ramp: what it and the refusals take is missing in the answers.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import measuring
import numpy as np
from bertron_loadtest.figures import figures_of, percentile
from bertron_loadtest.load import LoadSettings, ServerPlace, run_load
from bertron_loadtest.run_record import Run
from bertron_loadtest.samples import Outcome
from bertron_loadtest.suite import capacity_of
from bertron_server.server import TritonServer

REPOSITORY = measuring.ROOT / "model_repository"
TIMEOUT_S = 2.0
# Texts a call, and the loads in capacities of such calls. More single texts than that are more
# calls a second than one load generator in Python makes.
LOADS = ((32, (1.5, 3.0, 10.0)), (1, (1.5,)))
RAMP_USERS = {32: 8, 1: 64}
RAMP_S = 15.0
GOODPUT = 0.9  # of the capacity, aimed at
COLUMNS = (
    *("caller", "texts_a_call", "capacity_calls_per_s", "load", "seconds"),
    *("sent", "right", "refused", "timed_out", "other", "goodput"),
    *("right_p50_ms", "right_p99_ms", "refused_p50_ms", "refused_p99_ms"),
    *("encoder_cores", "other_server_cores", "generator_cores", "generator_lag_p99_ms"),
)


def flood(place: ServerPlace, capacity: float, load: float, settings: LoadSettings) -> list:
    """One row of COLUMNS."""
    with tempfile.TemporaryDirectory() as folder:
        run = run_load(settings, place, Path(folder))
    found = figures_of(run, None)
    samples, outcome = run.samples, run.samples.outcome
    right, refused = outcome == Outcome.RIGHT, outcome == Outcome.REFUSED
    timed_out = int(np.count_nonzero(outcome == Outcome.TIMED_OUT))
    count = int(np.count_nonzero(right)), int(np.count_nonzero(refused)), timed_out
    within = right & (samples.end_s < samples.due_s.min() + settings.seconds)
    return [
        *(settings.callers[0], settings.texts_a_call[0], capacity, load, settings.seconds),
        *(run.sent, *count, run.sent - sum(count)),
        np.count_nonzero(within) / (capacity * settings.seconds),
        *_latencies_ms(run, right),
        *_latencies_ms(run, refused),
        found["cpu_cores.bert"],
        found["cpu_cores.tokenizer"] + found["cpu_cores.tritonserver"],
        found["cpu_cores.load_generator"],
        found["generator_lag_p99_ms"],
    ]


def _latencies_ms(run: Run, chosen: np.ndarray) -> list[float | None]:
    return [percentile(1e3 * run.samples.latency_s[chosen], share) for share in (50, 99)]


def measure(repository: Path, seconds: float) -> list[list]:
    """All rows, on one server."""
    rows = []
    with TritonServer(repository, log_path=None) as server:
        urls = {"grpc": server.grpc_url, "http": server.http_url}
        place = ServerPlace(urls, server.metrics_url, server.pid)
        for texts, loads in LOADS:
            for caller in urls:
                ramp = LoadSettings(
                    callers=(caller,),
                    texts_a_call=(texts,),
                    shape="ramp",
                    users=RAMP_USERS[texts],
                    seconds=RAMP_S,
                    warm_up_s=1,
                )
                with tempfile.TemporaryDirectory() as folder:
                    capacity = capacity_of(run_load(ramp, place, Path(folder)))
                for load in loads:
                    settings = LoadSettings(
                        callers=(caller,),
                        texts_a_call=(texts,),
                        loop="open",
                        rate=load * capacity,
                        users=1,
                        seconds=seconds,
                        warm_up_s=0,
                        timeout_s=TIMEOUT_S,
                    )
                    rows.append(flood(place, capacity, load, settings))
                    sys.stdout.write(f"{dict(zip(COLUMNS, rows[-1], strict=True))}\n")
    return rows


def shown(row: list) -> list[str]:
    """A row for people."""
    cells = dict(zip(COLUMNS, row, strict=True))
    return [
        f"{cells['texts_a_call']} over {'gRPC' if cells['caller'] == 'grpc' else 'HTTP'}",
        f"{cells['load']:g} x {cells['capacity_calls_per_s']:.1f} calls/s",
        *(str(cells[name]) for name in ("sent", "right", "refused", "timed_out", "other")),
        f"{cells['goodput']:.2f}",
        _pair(cells["right_p50_ms"], cells["right_p99_ms"]),
        _pair(cells["refused_p50_ms"], cells["refused_p99_ms"]),
        *(f"{cells[f'{name}_cores']:.2f}" for name in ("encoder", "other_server", "generator")),
    ]


def _pair(p50: float | None, p99: float | None) -> str:
    return "" if p50 is None or p99 is None else f"{p50:.0f}, {p99:.0f}"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repository", type=Path, default=REPOSITORY, help="what is served")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each load")
    parser.add_argument("--results", type=Path, default=measuring.RESULTS)
    args = parser.parse_args()

    rows = measure(args.repository, args.seconds)
    headings = [
        *("texts a call", "load", "sent", "right", "refused", "timed out", "other"),
        f"right in time, of the capacity [>= {GOODPUT}]",
        *("right, p50 and p99 ms", "refused, p50 and p99 ms"),
        *("cores: `bert`", "the server's other two", "the load generator"),
    ]
    text = "\n".join(
        [
            f"# Overload\n\n{' '.join(__doc__.split())}\n",
            measuring.table(headings, [shown(row) for row in rows]) + "\n",
            f"{args.seconds:g} s each. {measuring.setting()}.\n",
        ]
    )
    sys.stdout.write(text)
    measuring.write_results(args.results, "overload", text, COLUMNS, rows)


if __name__ == "__main__":
    main()
