"""Which requests the tokenizer takes on, and until when their answers are wanted."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

from bertron_backend.encoder_queue import QueueEntrance, Ticket, monotonic_us
from bertron_backend.queue_age import QueueAge


class Admitted(NamedTuple):
    """A request that may go on.

    Attributes:
        deadline_us: Until when its answer is wanted, on the machine's monotonic clock.
        entrance: Of the queue that it goes on to; None where nobody counts it.
    """

    deadline_us: int
    entrance: QueueEntrance | None

    def ticket(self, tokens: int) -> Ticket:
        """What it takes along, now that its number of tokens is known."""
        if self.entrance is None:
            return Ticket(self.deadline_us)
        return self.entrance.join(tokens, self.deadline_us)


class Admission:
    """The tokenizer's door.

    Args:
        entrance: To the encoder's queue; None where its page could not be made, and all may pass.
        age: Of the tokenizer's own queue; None where nobody can tell, and none is assumed.
    """

    def __init__(self, entrance: QueueEntrance | None, age: QueueAge | None) -> None:
        self._entrance = entrance
        self._age = age

    def admit(self, may_take_us: int, *, is_for_encoder: bool) -> Admitted:
        """Let a request pass, or refuse one that would be answered too late.

        Args:
            may_take_us: How long its answer is waited for, from when it reached the server.
            is_for_encoder: Whether it goes on to the encoder; else only its deadline is set.

        Raises:
            OverloadedError: Too much waits already.
        """
        waited_us = 0 if self._age is None else self._age.us
        entrance = self._entrance if is_for_encoder else None
        if entrance is not None:
            entrance.admit(may_take_us, waited_us)
        return Admitted(monotonic_us() + may_take_us - waited_us, entrance)

    def working(self) -> contextlib.AbstractContextManager[None]:
        """Around the work on a request."""
        return contextlib.nullcontext() if self._age is None else self._age.working()

    def close(self) -> None:
        """Take away what lies outside this process."""
        if self._age is not None:
            self._age.stop()
        if self._entrance is not None:
            self._entrance.close()
