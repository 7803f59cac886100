"""What the calls and counters of a run come to: numbers by name, of each phase and of all.

Percentiles are of the nearest rank: p99 is the smallest latency that at least 99 of 100 calls did
not exceed, so it is always one that was seen.
"""

import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from bertron_loadtest import counters
from bertron_loadtest.counters import Span
from bertron_loadtest.phases import WARM_UP, PhaseRecord
from bertron_loadtest.run_record import Run
from bertron_loadtest.samples import Outcome, Samples

Figures = dict[str, float | None]

WHOLE_RUN = "all"
WHOLE_RUN_ONLY = ("not_sent",)
COUNTS = ("calls", "right", "wrong", "refused", "timed_out", "disconnected", "failed", "unanswered")
# Mean times of a request inside the server, in the order of its way.
SERVER_PARTS = (
    *("tokenizer_queue_ms", "tokenizer_ms", "between_steps_ms"),
    *("bert_queue_ms", "bert_ms"),
)
FIGURES = (
    *("calls", "calls_per_s", "texts_per_s", "tokens_per_s"),
    *("mean_ms", "p50_ms", "p95_ms", "p99_ms", "max_ms", "p99_over_p50", "usual_p99_over_p50"),
    *("right", "wrong", "refused", "timed_out", "disconnected", "failed"),
    *("error_share", "refused_share", "unanswered", "generator_lag_p99_ms", "not_sent"),
    *("server_ms", "network_ms", *SERVER_PARTS),
    *("batch_texts", "batch_tokens", "padding_saved"),
)
PROCESS_FIGURES = ("cpu_cores", "memory_mb", "memory_slope_mb_per_min")

RAMP_PHASE = re.compile(r"\d+ users")
SETTLING_S = 1.0  # of a ramp's step, in which its new users begin; half of a step that is shorter
TAIL_PARTS = 5  # of a phase, each with a tail of its own, for usual_p99_over_p50
ONE_REQUEST_TOLERANCE = 0.1  # calls on a phase's edge make calls and requests differ a little

_BUCKET = re.compile(r'bertron_batch_tokens_bucket\{le="([^"]+)"\}')


def figures_of(run: Run, phase: PhaseRecord | None) -> Figures:
    """Return the figures of a phase, or of the whole run for None.

    Counts are of the calls that ended in the phase; of the whole run they are of every call, the
    warm-up's too. Latencies are those of right calls that ended in the measured part of the
    phase (see ``measured_span``); of the last phase also those that ended after it, and of the
    whole run all that ended after the warm-up. For the rates each right call's texts are spread
    evenly over the time from when it was due to its answer, and the part of them inside the
    measured part counts, however long the call. The server's figures are the growth of its
    counters in the measured part (see ``counters``).

    Args:
        run: Phases, calls and snapshots.
        phase: Need not be one of the run's: any part of its time.

    Returns:
        Exactly ``FIGURES``, then ``PROCESS_FIGURES`` of each process as ``cpu_cores.bert``, MB
        being 10^6 bytes. ``usual_p99_over_p50`` is the median of ``p99_over_p50`` of five equal
        parts of the calls, in the order of their ends: a moment in which something else had the
        cores is in one or two of them, a fault of the server in most. None is what cannot be
        known: a latency where no call was right, the server's part where snapshots do not hold it
        or its counters fell, tokens where a right call does not say how many, ``network_ms``
        where a call may be several requests, a usual tail of fewer than five calls.
        ``between_steps_ms`` may be a little below 0: a step's time ends after its answer has left.
    """
    samples, span = run.samples, measured_span(run, phase)
    right = samples.outcome == Outcome.RIGHT
    ended, measured = np.ones(len(samples), bool), _measured(run, phase)
    if phase is not None:
        ended = _within(samples.end_s, (phase.start_s, phase.end_s))
    found: Figures = {
        **_counts(samples.outcome[ended]),
        **_rates(samples, right, span),
        **_latencies(right_latencies_ms(run, phase)),
        "generator_lag_p99_ms": percentile(1e3 * samples.lag_s[measured], 99),
        "not_sent": run.not_sent if phase is None else None,
    }
    if phase is None:
        found["unanswered"] = (found["unanswered"] or 0) + run.sent - len(samples)
    found |= _server_figures(run, span)
    found["network_ms"] = _network_ms(run, span, found, samples.texts[measured & right])
    return {name: found[name] for name in FIGURES} | _process_figures(run, span)


def figures_by_phase(run: Run) -> dict[str, Figures]:
    """Return those of each phase in order, then of ``all``."""
    by_phase = {phase.name: figures_of(run, phase) for phase in run.phases}
    return by_phase | {WHOLE_RUN: figures_of(run, None)}


def find_phase(run: Run, name: str) -> PhaseRecord | None:
    """Return the phase of a name; None for ``all``.

    Raises:
        ValueError: There is none; the message lists those that there are.
    """
    if name == WHOLE_RUN:
        return None
    for phase in run.phases:
        if phase.name == name:
            return phase
    names = ", ".join([*(phase.name for phase in run.phases), WHOLE_RUN])
    raise ValueError(f"the run has no phase {name!r}; it has {names}")


def measured_span(run: Run, phase: PhaseRecord | None) -> Span:
    """Return what rates, latencies and the server's figures of a phase are taken from.

    That is all of it, but for a ramp's step: it has its first second to settle. Of the whole run
    (None) it is the time from the end of the warm-up to the end of the last phase.
    """
    if phase is None:
        load = [phase for phase in run.phases if phase.name != WARM_UP]
        return (load[0].start_s, load[-1].end_s) if load else (0.0, 0.0)
    settling_s = 0.0
    if RAMP_PHASE.fullmatch(phase.name):
        settling_s = min(SETTLING_S, (phase.end_s - phase.start_s) / 2)
    return phase.start_s + settling_s, phase.end_s


def right_latencies_ms(run: Run, phase: PhaseRecord | None) -> NDArray[np.float64]:
    """Return what a phase's latencies are taken from, in the order of the calls' ends.

    What was held up longest in the last phase ends after it: the tail would look short without it.
    """
    start_s, end_s = measured_span(run, phase)
    is_open = phase is None or phase in run.phases[-1:]
    ended = _within(run.samples.end_s, (start_s, np.inf if is_open else end_s))
    chosen = ended & (run.samples.outcome == Outcome.RIGHT)
    latencies_ms: NDArray[np.float64] = 1e3 * run.samples.latency_s[chosen]
    return latencies_ms


def percentile(values: NDArray[np.float64], percent: int) -> float | None:
    """Return the value of the nearest rank, from 1 to 100 percent; None of no values."""
    if not len(values):
        return None
    rank = -(-percent * len(values) // 100)  # whole numbers: 0.99 * n may round up a rank
    return float(np.sort(values)[rank - 1])


def done_by(
    samples: Samples, weights: NDArray[np.int64], times_s: Sequence[float]
) -> NDArray[np.float64]:
    """Return how much was done by each time, each call's weight spread evenly over its time.

    Args:
        samples: N calls.
        weights: [N]; texts, tokens, or 0 for a call that does not count.
        times_s: Unix time.
    """
    lasting = np.maximum(samples.latency_s, 1e-9)  # not even a call of no time divides by 0
    shares = (np.clip((time_s - samples.due_s) / lasting, 0, 1) for time_s in times_s)
    return np.array([np.dot(share, weights) for share in shares])


def batch_sizes(run: Run, phase: PhaseRecord | None) -> dict[int, int]:
    """Return how often ``bert`` ran a batch of so many texts, by texts; empty if unknown.

    The counters are interpolated, then rounded: a phase's edge makes a count one off.
    """
    span = measured_span(run, phase)
    steps = (snapshot.steps.get("bert") for snapshot in run.snapshots)
    sizes = sorted({size for step in steps if step for size in step.batch_sizes})
    readers = {size: counters.executions_of("bert", size) for size in sizes}
    grown = {size: counters.growth(run, span, read) or 0 for size, read in readers.items()}
    return {size: round(count) for size, count in grown.items() if round(count)}


def batch_tokens(run: Run, phase: PhaseRecord | None) -> dict[float, int]:
    """Return ``bert``'s batches by the upper edge of their tokens; empty if unknown.

    Each edge's batches have more tokens than the edge before; the last edge is infinite. Rounded
    as ``batch_sizes`` are.
    """
    names = {name for snapshot in run.snapshots for name in snapshot.metrics}
    edges = {float(match[1]): match[0] for name in names if (match := _BUCKET.fullmatch(name))}
    span = measured_span(run, phase)
    known, below = {}, 0.0
    for edge in sorted(edges):
        count = counters.growth(run, span, counters.of_metric(edges[edge]))
        if count is None:
            return {}
        known[edge], below = round(count - below), count
    return known if any(known.values()) else {}


def errors_by_class(run: Run) -> list[tuple[str, str, int]]:
    """Return (outcome, error text, count) of calls that were not right, most frequent first."""
    pairs = zip(run.samples.outcome, run.samples.error, strict=True)
    counts = Counter((str(outcome), error) for outcome, error in pairs if outcome != Outcome.RIGHT)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [(outcome, error, count) for (outcome, error), count in ordered]


def process_names(run: Run) -> list[str]:
    """Return what processes were seen, in the order in which they first were."""
    return list(dict.fromkeys(name for snapshot in run.snapshots for name in snapshot.processes))


def _measured(run: Run, phase: PhaseRecord | None) -> NDArray[np.bool_]:
    """Which calls ended in the measured part; of the whole run, also those after its last phase."""
    start_s, end_s = measured_span(run, phase)
    return _within(run.samples.end_s, (start_s, np.inf if phase is None else end_s))


def _within(times_s: NDArray[np.float64], span: Span) -> NDArray[np.bool_]:
    """Half open, so that a call belongs to one phase."""
    return (times_s >= span[0]) & (times_s < span[1])


def _counts(outcomes: NDArray[np.object_]) -> Figures:
    by_outcome = Counter(map(str, outcomes))
    counts = {outcome.value: by_outcome[outcome.value] for outcome in Outcome}
    calls = len(outcomes)
    errors = calls - counts[Outcome.RIGHT] - counts[Outcome.REFUSED]
    return {
        **counts,
        "calls": calls,
        "unanswered": counts[Outcome.TIMED_OUT] + counts[Outcome.DISCONNECTED],
        "error_share": errors / calls if calls else None,
        "refused_share": counts[Outcome.REFUSED] / calls if calls else None,
    }


def _rates(samples: Samples, right: NDArray[np.bool_], span: Span) -> Figures:
    seconds = span[1] - span[0]
    if seconds <= 0:
        return dict.fromkeys(("calls_per_s", "texts_per_s", "tokens_per_s"))

    def rate(amounts: NDArray[np.int64]) -> float:
        before, after = done_by(samples, np.where(right, amounts, 0), span)
        return float(after - before) / seconds

    counting = right & (samples.end_s > span[0]) & (samples.due_s < span[1])
    tokens_known = bool((samples.tokens[counting] > 0).all())  # the shortest text has two
    return {
        "calls_per_s": rate(np.ones_like(samples.texts)),
        "texts_per_s": rate(samples.texts),
        "tokens_per_s": rate(samples.tokens) if tokens_known else None,
    }


def _latencies(latencies_ms: NDArray[np.float64]) -> Figures:
    return {
        "mean_ms": float(latencies_ms.mean()) if len(latencies_ms) else None,
        "p50_ms": percentile(latencies_ms, 50),
        "p95_ms": percentile(latencies_ms, 95),
        "p99_ms": percentile(latencies_ms, 99),
        "max_ms": percentile(latencies_ms, 100),
        "p99_over_p50": _tail(latencies_ms),
        "usual_p99_over_p50": _usual_tail(latencies_ms),
    }


def _tail(latencies_ms: NDArray[np.float64]) -> float | None:
    p50_ms, p99_ms = percentile(latencies_ms, 50), percentile(latencies_ms, 99)
    return p99_ms / p50_ms if p99_ms is not None and p50_ms else None


def _usual_tail(latencies_ms: NDArray[np.float64]) -> float | None:
    tails = [_tail(part) for part in np.array_split(latencies_ms, TAIL_PARTS)]
    known = [tail for tail in tails if tail is not None]
    return statistics.median(known) if len(known) == TAIL_PARTS else None


def _server_figures(run: Run, span: Span) -> Figures:
    def mean_ms(step: str, counter: str) -> float | None:
        sums, requests = counters.of_step(step, counter), counters.of_step(step, "requests")
        nanoseconds = counters.ratio(run, span, sums, requests)
        return None if nanoseconds is None else nanoseconds / 1e6

    def of_metrics(top: str, bottom: str) -> float | None:
        return counters.ratio(run, span, counters.of_metric(top), counters.of_metric(bottom))

    texts = counters.of_step("bert", "texts")
    executions = counters.of_step("bert", "executions")
    computed = of_metrics("bertron_tokens_total", "bertron_padded_tokens_total")
    found: Figures = {
        "server_ms": mean_ms("ensemble", "total_ns"),
        "tokenizer_queue_ms": mean_ms("tokenizer", "queue_ns"),
        "tokenizer_ms": mean_ms("tokenizer", "compute_ns"),
        "bert_queue_ms": mean_ms("bert", "queue_ns"),
        "bert_ms": mean_ms("bert", "compute_ns"),
        "batch_texts": counters.ratio(run, span, texts, executions),
        "batch_tokens": of_metrics("bertron_batch_tokens_sum", "bertron_batch_tokens_count"),
        "padding_saved": None if computed is None else 1 - computed,
    }
    parts = [found[name] for name in SERVER_PARTS if name != "between_steps_ms"]
    found["between_steps_ms"] = _difference(found["server_ms"], parts)
    return found


def _network_ms(
    run: Run, span: Span, found: Mapping[str, float | None], texts: NDArray[np.int64]
) -> float | None:
    """What a call took beyond its request, if requests have as many texts as calls have."""
    requests = counters.of_step("ensemble", "requests")
    a_request = counters.ratio(run, span, counters.of_step("ensemble", "texts"), requests)
    if not a_request or not len(texts):
        return None
    if abs(float(texts.mean()) / a_request - 1) > ONE_REQUEST_TOLERANCE:
        return None
    return _difference(found["mean_ms"], [found["server_ms"]])


def _difference(whole: float | None, parts: Sequence[float | None]) -> float | None:
    known = [part for part in parts if part is not None]
    return None if whole is None or len(known) < len(parts) else whole - sum(known)


def _process_figures(run: Run, span: Span) -> Figures:
    found: Figures = {}
    for name in process_names(run):
        key, memory_mb = name.replace(" ", "_"), counters.memory_mb(name)
        found[f"cpu_cores.{key}"] = counters.growth_per_s(run, span, counters.cpu_s(name))
        found[f"memory_mb.{key}"] = counters.at_end(run, span, memory_mb)
        found[f"memory_slope_mb_per_min.{key}"] = counters.slope_per_min(run, span, memory_mb)
    return found
