"""The shapes of a load: how many users there are, and for how long."""

from collections.abc import Sequence
from dataclasses import dataclass

WARM_UP = "warm-up"  # a phase of this name is judged by nobody
SHAPES = ("steady", "ramp", "spike", "soak")
SPIKE_TIMES = 10  # as many users in the middle of a spike as around it
LEAST_GAIN = 1.05  # of a step of the ramp over the best before it
# So many end a ramp. Not fewer: a server that joins calls gains nothing from two users, of whom one
# always waits while the other is served, and little from four.
STEPS_WITHOUT_GAIN = 3


@dataclass(frozen=True)
class Phase:
    """A part of a run. In an open loop a user is a rate: see ``users.py``."""

    name: str
    users: int
    seconds: float


@dataclass(frozen=True)
class PhaseRecord:
    """A phase as it was; times are Unix time."""

    name: str
    users: int
    start_s: float
    end_s: float


def plan_phases(shape: str, *, users: int, seconds: float, warm_up_s: float) -> list[Phase]:
    """Return the phases of a shape.

    Args:
        shape: ``steady``: as many all the time. ``soak``: the same, for long. ``ramp``: from one
            user on twice as many each step, up to ``users``. ``spike``: ten times ``users`` in
            the middle third.
        users: At most, except in a spike.
        seconds: All phases together, without the warm-up.
        warm_up_s: Before them, with as many users as in the first; 0 for none.

    Raises:
        ValueError: Another shape, or a number that is not positive.
    """
    if users < 1 or seconds <= 0 or warm_up_s < 0:
        raise ValueError(
            f"{users} users for {seconds:g} s after {warm_up_s:g} s; positive numbers are wanted"
        )
    if shape in ("steady", "soak"):
        phases = [Phase(shape, users, seconds)]
    elif shape == "ramp":
        counts = [1 << power for power in range(users.bit_length())]
        counts += [users] if counts[-1] != users else []
        phases = [Phase(f"{count} users", count, seconds / len(counts)) for count in counts]
    elif shape == "spike":
        third = seconds / 3
        phases = [
            Phase("before", users, third),
            Phase("spike", SPIKE_TIMES * users, third),
            Phase("after", users, third),
        ]
    else:
        raise ValueError(f"shape is {shape!r}, one of {', '.join(SHAPES)} is wanted")
    return [*([Phase(WARM_UP, phases[0].users, warm_up_s)] if warm_up_s else []), *phases]


def is_saturated(rates: Sequence[float]) -> bool:
    """Whether more users bring no more: no gain in each of the last steps of a ramp.

    Args:
        rates: Texts/s of each step so far.
    """
    if len(rates) <= STEPS_WITHOUT_GAIN:
        return False
    best = max(rates[:-STEPS_WITHOUT_GAIN])
    return max(rates[-STEPS_WITHOUT_GAIN:]) < LEAST_GAIN * best
