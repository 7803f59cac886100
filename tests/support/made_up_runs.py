"""Runs that were never made, with properties that a test knows. Times count from ``BEGIN_S``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from bertron_loadtest.phases import WARM_UP, PhaseRecord
from bertron_loadtest.run_record import ProcessUse, Run, Snapshot, StepCounters
from bertron_loadtest.samples import Sample, Samples

BEGIN_S = 1_000_000.0  # Unix time
TOKENS_A_TEXT = 20
TEXTS_A_BATCH = 8
PADDED_TOKENS_A_TEXT = 25  # of a padded batch: a fifth of it is not computed

# What each request spends where, in ms; bert's queue has what is left of its latency.
NETWORK_MS = 2.0
TOKENIZER_QUEUE_MS = 1.0
TOKENIZER_MS = 0.5
BETWEEN_STEPS_MS = 0.25
BERT_SHARE = 0.5  # of the time that is left

CPU_CORES = {"tritonserver": 0.1, "tokenizer": 0.25, "bert": 1.25, "load generator": 0.2}
MEMORY_MB = {"tritonserver": 200, "tokenizer": 150, "bert": 600, "load generator": 120}
BERT_MB_PER_MIN = 6.0  # the others stay as they are

SETTING = {"date": "2027-01-02T03:04:05+00:00", "machine": "made up, 2 cores", "bertron": "0.1.0"}


def call(
    due_s: float,
    latency_s: float,
    *,
    texts: int = 1,
    tokens: int | None = None,
    outcome: str = "right",
    error: str = "",
    lag_s: float = 0.0,
    caller: str = "grpc",
) -> Sample:
    """A call; its tokens are as many as its texts have, if it is right."""
    if tokens is None:
        tokens = texts * TOKENS_A_TEXT if outcome == "right" else 0
    return Sample(BEGIN_S + due_s, lag_s, latency_s, caller, texts, tokens, outcome, error)


def phase(name: str, start_s: float, end_s: float, users: int = 1) -> PhaseRecord:
    return PhaseRecord(name, users, BEGIN_S + start_s, BEGIN_S + end_s)


def make_run(
    calls: Iterable[Sample],
    phases: Sequence[PhaseRecord],
    snapshots: Sequence[Snapshot] = (),
    *,
    sent: int | None = None,
    not_sent: int = 0,
    problem: str = "",
    **settings: object,
) -> Run:
    samples = Samples(calls)
    return Run(
        settings={"model": "text_embedding", "workload": "short", **settings},
        setting=SETTING,
        phases=phases,
        samples=samples,
        sent=len(samples) if sent is None else sent,
        not_sent=not_sent,
        snapshots=snapshots,
        problem=problem,
    )


def steady_run(
    *,
    users: int = 4,
    seconds: float = 20.0,
    warm_up_s: float = 2.0,
    latency_ms: float = 50.0,
    texts: int = 1,
    seed: int = 0,
    shape: str = "steady",
) -> Run:
    """Closed loops whose latencies are log-normal around a median."""
    plan = [(WARM_UP, users, warm_up_s, latency_ms), (shape, users, seconds, latency_ms)]
    return _run([step for step in plan if step[2]], texts, seed, shape=shape, users=users)


def ramp_run(
    *, most_users: int = 64, step_s: float = 5.0, texts_per_s: float = 400.0, refused_from: int = 32
) -> Run:
    """Throughput is bounded, so that latency grows with the users; from some on calls are refused.

    A fifth of their calls is, and at once.
    """
    counts = [1 << power for power in range(most_users.bit_length())]
    plan = [(WARM_UP, 1, 2.0, 10.0)]
    for count in counts:
        latency_ms = max(10.0, 1e3 * count / texts_per_s)
        plan.append((f"{count} users", count, step_s, latency_ms))
    return _run(plan, 1, 0, refused_from=refused_from, shape="ramp", users=most_users)


def spike_run(*, third_s: float = 10.0) -> Run:
    """Ten times the users in the middle, with ten times the latency, and refusals."""
    plan = [
        ("before", 4, third_s, 50.0),
        ("spike", 40, third_s, 500.0),
        ("after", 4, third_s, 50.0),
    ]
    return _run(plan, 1, 0, refused_from=40, shape="spike", users=4)


def _run(
    plan: Sequence[tuple[str, int, float, float]],
    texts: int,
    seed: int,
    refused_from: int | None = None,
    **settings: object,
) -> Run:
    chance = np.random.default_rng(seed)
    calls: list[Sample] = []
    phases: list[PhaseRecord] = []
    start_s = 0.0
    for name, users, seconds, latency_ms in plan:
        phases.append(phase(name, start_s, start_s + seconds, users))
        is_refusing = refused_from is not None and users >= refused_from
        for _ in range(users):
            calls += _closed_loop(chance, phases[-1], latency_ms, texts, is_refusing)
        start_s += seconds
    return make_run(calls, phases, snapshots_of(calls, start_s), **settings)


def _closed_loop(
    chance: np.random.Generator,
    during: PhaseRecord,
    latency_ms: float,
    texts: int,
    is_refusing: bool,
) -> Iterator[Sample]:
    now_s = during.start_s - BEGIN_S + chance.random() * latency_ms / 1e3
    while now_s < during.end_s - BEGIN_S:
        latency_s = latency_ms / 1e3 * math.exp(0.15 * chance.standard_normal())
        if is_refusing and chance.random() < 0.2:
            error = "OverloadedError: the server is busy"
            yield call(now_s, 0.002, texts=texts, outcome="refused", error=error)
            now_s += 0.05  # as long as the user waits before it asks again
            continue
        yield call(now_s, latency_s, texts=texts, lag_s=1e-4 * chance.random())
        now_s += latency_s


def snapshots_of(calls: Sequence[Sample], end_s: float, every_s: float = 1.0) -> list[Snapshot]:
    """What a server of the properties above would have told while it answered the calls."""
    samples = Samples(calls)
    right = samples.outcome == "right"
    times = np.arange(-1.0, end_s + 2.0, every_s)
    return [_snapshot(samples, right, BEGIN_S + time_s) for time_s in times]


def _snapshot(samples: Samples, right: np.ndarray, now_s: float) -> Snapshot:
    answered = right & (samples.end_s <= now_s)
    requests = int(answered.sum())
    texts = int(samples.texts[answered].sum())
    total_ms = 1e3 * float(samples.latency_s[answered].sum()) - NETWORK_MS * requests
    before_bert_ms = TOKENIZER_QUEUE_MS + TOKENIZER_MS + BETWEEN_STEPS_MS
    in_bert_ms = total_ms - before_bert_ms * requests
    batches = texts // TEXTS_A_BATCH
    steps = {
        "ensemble": _step(requests, texts, 0, total_ms, 0, 0),
        "tokenizer": _step(
            *(requests, texts, requests, (TOKENIZER_QUEUE_MS + TOKENIZER_MS) * requests),
            *(TOKENIZER_QUEUE_MS * requests, TOKENIZER_MS * requests),
        ),
        "bert": _step(
            *(requests, texts, batches, in_bert_ms),
            *((1 - BERT_SHARE) * in_bert_ms, BERT_SHARE * in_bert_ms),
            {TEXTS_A_BATCH - 4: batches // 2, TEXTS_A_BATCH + 4: batches - batches // 2},
        ),
    }
    tokens = texts * TOKENS_A_TEXT
    small, large = batches // 2, batches - batches // 2  # of 80 and of 240 tokens
    metrics = {
        "bertron_tokens_total": tokens,
        "bertron_padded_tokens_total": texts * PADDED_TOKENS_A_TEXT,
        "bertron_texts_total": texts,
        'bertron_batch_tokens_bucket{le="64"}': 0,
        'bertron_batch_tokens_bucket{le="128"}': small,
        'bertron_batch_tokens_bucket{le="256"}': small + large,
        'bertron_batch_tokens_bucket{le="+Inf"}': small + large,
        "bertron_batch_tokens_count": batches,
        "bertron_batch_tokens_sum": tokens,
    }
    running_s = now_s - BEGIN_S + 10
    processes = {
        name: ProcessUse(
            cores * running_s,
            int(1e6 * (MEMORY_MB[name] + (BERT_MB_PER_MIN * running_s / 60) * (name == "bert"))),
        )
        for name, cores in CPU_CORES.items()
    }
    return Snapshot(
        now_s, steps, {name: float(value) for name, value in metrics.items()}, processes
    )


def _step(
    requests: int,
    texts: int,
    executions: int,
    total_ms: float,
    queue_ms: float,
    compute_ms: float,
    batch_sizes: dict[int, int] | None = None,
) -> StepCounters:
    times_ns = (round(1e6 * milliseconds) for milliseconds in (total_ms, queue_ms, compute_ms))
    return StepCounters(requests, 0, texts, executions, *times_ns, batch_sizes or {})
