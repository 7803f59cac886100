"""Times on a GPU, the ceilings that they are held against, and the time that a part may take."""

import contextlib
import functools
import math
import signal
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

Call = Callable[[], object]

# Inputs together this many times the L2 before they come round again: none is found there.
CACHES_OF_INPUTS = 3
MOST_SETS = 64
# In one graph: the events' own time and the launch of the graph are shared by so many.
CALLS_A_GRAPH = 48
LEAST_REPLAYS, MOST_REPLAYS = 10, 100
COPY_BYTES = 4 << 30  # read, and as many written
PRODUCT_SIZE = 8192
CEILING_REPEATS = 20
REPEAT_S, SOON_S = 10.0, 0.001  # of the interruption of what goes on when its time is over


class OutOfTimeError(Exception):
    """A part's time is over; what was measured until then stands."""


class Budget:
    """The time of one part.

    Args:
        seconds: From now on.
    """

    def __init__(self, seconds: float) -> None:
        self._ends = time.monotonic() + seconds

    @property
    def left_s(self) -> float:
        """Seconds, 0 when it is over."""
        return max(0.0, self._ends - time.monotonic())

    @contextlib.contextmanager
    def enforced(self) -> Iterator[None]:
        """Interrupt what runs when the time is over, a compilation too; main thread only.

        One may be inside another; the one that ends first interrupts.

        Raises:
            OutOfTimeError: It was over.
        """

        def interrupt(_number: int, _frame: object) -> None:
            raise OutOfTimeError

        outer_left_s, outer_interval_s = signal.getitimer(signal.ITIMER_REAL)
        started = time.monotonic()
        left_s = min(self.left_s, outer_left_s or math.inf)
        if left_s == 0:
            raise OutOfTimeError
        before = signal.signal(signal.SIGALRM, interrupt)
        # Again and again: a library may take the first for an error of its own, and go on.
        signal.setitimer(signal.ITIMER_REAL, left_s, REPEAT_S)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            if outer_left_s:
                rest_s = max(SOON_S, outer_left_s - (time.monotonic() - started))
                signal.setitimer(signal.ITIMER_REAL, rest_s, outer_interval_s)


@dataclass(frozen=True)
class Ceilings:
    """What this GPU does at best, measured in the same run.

    Attributes:
        copy_gb_s: Device to device, bytes read and bytes written counted.
        product_tflop_s: A large matrix product of random numbers, by dtype.
        l2_bytes: Size of the second cache.
    """

    copy_gb_s: float
    product_tflop_s: Mapping[str, float]
    l2_bytes: int


def measure_ceilings() -> Ceilings:
    """A copy of 4 GB and products of 8192 x 8192 x 8192."""
    read = torch.randn(COPY_BYTES // 4, device="cuda")
    copy = functools.partial(torch.empty_like(read).copy_, read)
    copy_ms = statistics.median(_event_times_ms(copy, CEILING_REPEATS))
    del read, copy
    products = {}
    for dtype in (torch.float16, torch.bfloat16):
        left, right = (
            torch.randn(PRODUCT_SIZE, PRODUCT_SIZE, device="cuda", dtype=dtype) for _ in range(2)
        )
        out = torch.empty_like(left)
        times = _event_times_ms(
            lambda left=left, right=right, out=out: torch.mm(left, right, out=out), CEILING_REPEATS
        )
        name = str(dtype).removeprefix("torch.")
        products[name] = 2 * PRODUCT_SIZE**3 / statistics.median(times) / 1e9
    torch.cuda.empty_cache()
    properties = torch.cuda.get_device_properties(0)
    return Ceilings(2 * COPY_BYTES / copy_ms / 1e6, products, properties.L2_cache_size)


def sets_beyond_cache(l2_bytes: int, bytes_a_set: float) -> int:
    """How many sets of inputs a call must rotate among so that none is in the cache, 2 to 64."""
    return min(MOST_SETS, max(2, math.ceil(CACHES_OF_INPUTS * l2_bytes / bytes_a_set)))


def replay_times_ms(calls: Sequence[Call], *, budget_s: float = 0.15) -> list[float]:
    """Milliseconds of one call on the GPU, from replays of a graph of many calls in a row.

    Args:
        calls: The same work on different inputs; they take turns, and the outputs of one turn are
            alive together, so that each is written to memory of its own.
        budget_s: No more replays than fit, but LEAST_REPLAYS.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what compiles or makes handles must not do so in the capture
        for call in calls[:2]:
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    turns = math.ceil(CALLS_A_GRAPH / len(calls))
    outputs: deque[object] = deque(maxlen=len(calls))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in [*calls] * turns:
            outputs.append(call())
    first_ms = max(_event_times_ms(graph.replay, 2))
    replays = min(MOST_REPLAYS, max(LEAST_REPLAYS, int(1e3 * budget_s / first_ms)))
    times = _event_times_ms(graph.replay, replays)
    outputs.clear()
    graph.reset()
    return [ms / (turns * len(calls)) for ms in times]


def _event_times_ms(call: Call, repeats: int) -> list[float]:
    """Each of ``repeats`` calls in a row between two events of its own, after one for warmth."""
    events = [
        [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # before, after
        for _ in range(repeats)
    ]
    call()
    for before, after in events:
        before.record()
        call()
        after.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) for before, after in events]


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def row_ms(call: Call, device: torch.device, count: int) -> float:
    """Milliseconds a call by the host's clock, ``count`` one after the other, then one wait."""
    wait(device)
    started = time.perf_counter()
    for _ in range(count):
        call()
    wait(device)
    return 1e3 * (time.perf_counter() - started) / count


def rounds_ms(
    calls: Mapping[str, Call], device: torch.device, *, rounds: int, round_s: float
) -> dict[str, list[float]]:
    """Times of each, in turns, ``round_s`` of calls in a row at a time; they must be warm."""
    counts = {
        name: max(1, int(1e3 * round_s / row_ms(call, device, 2))) for name, call in calls.items()
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(row_ms(call, device, counts[name]))
    return times


def latencies_ms(call: Call, device: torch.device, count: int) -> list[float]:
    """Each call alone, from its start until the device is done with it."""
    return [row_ms(call, device, 1) for _ in range(count)]
