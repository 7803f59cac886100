"""How much waits for the encoder, known where requests join the queue.

Triton server's queue between the two models has no limit, and neither of them can look into it. So
the tokenizer numbers the tokens that it hands on, and the encoder writes on a page of shared memory
up to which number it has come and how long a token takes it. What would get its answer too late is
then refused at once, before any work goes into it: docs/decisions/0019-refused-at-the-door.md
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bertron_backend.cost_model import CostModel
from bertron_backend.errors import OverloadedError
from bertron_backend.queue_page import Line, Page, default_directory, make_page, path_of
from bertron_backend.shared_files import make_private, open_in_use, remove_unused

# Of the time that a request may take, a second is for its own forward and the way there and back, a
# fifth for what the estimate is wrong by; of a short time half. The rest may be waiting.
KEPT_US = 1_000_000
KEPT_SHARE = 0.2
MOST_KEPT_SHARE = 0.5
# An encoder that has had nothing to do for so long has an empty queue, whatever was handed on:
# requests can be cancelled on their way.
IDLE_AFTER_US = 50_000
# A batch that begins so soon after the one before had been waiting: the time between is the
# server's, and counts as the batch's.
NEXT_WITHIN_US = 5_000
# The cost of a token, its share of a batch's fixed part included, is that of a batch of this size.
FULL_BATCH_TOKENS = 1024
# So many tokens weigh as much as all batches before them.
REMEMBERED_TOKENS = 2000
MOST_QUEUES = 64  # that an encoder looks after; one a tokenizer instance


class Ticket(NamedTuple):
    """What a request takes with it from the tokenizer to the encoder: four int64.

    Attributes:
        deadline_us: Until when the answer is wanted, on the machine's monotonic clock.
        queue: Whose numbers the other two are; 0 where nobody counts.
        begin: Tokens that were handed on before its own.
        end: The same with its own.
    """

    deadline_us: int
    queue: int = 0
    begin: int = 0
    end: int = 0


def monotonic_us() -> int:
    """Microseconds on a clock that all processes of a machine share."""
    return time.monotonic_ns() // 1000


def may_wait_us(may_take_us: int) -> float:
    """How long a request may wait for the encoder, so that its answer comes in time."""
    kept_us = max(KEPT_SHARE * may_take_us, min(KEPT_US, MOST_KEPT_SHARE * may_take_us))
    return may_take_us - kept_us


class QueueEntrance:
    """The tokenizer's side: who may join, and with which number.

    Args:
        directory: Of the page; made where it is missing.
        now_us: The clock.

    Raises:
        OSError: No page can be made there.
    """

    def __init__(
        self, directory: Path | None = None, now_us: Callable[[], int] = monotonic_us
    ) -> None:
        directory = directory or default_directory()
        make_private(directory)
        remove_unused(directory)
        self.queue, self._path, descriptor = make_page(directory)
        self._page = Page(descriptor)
        self._now_us = now_us
        self._end = 0

    def admit(self, may_take_us: int, waited_us: int = 0) -> None:
        """Return, or refuse a request that would be answered too late.

        Args:
            may_take_us: How long its answer is waited for.
            waited_us: How much of that is over.

        Raises:
            OverloadedError: Too much waits already.
        """
        most_us = may_wait_us(may_take_us)
        tokens, wait_us = self._waiting()
        if waited_us + wait_us <= most_us:
            return
        if self._page.remove_dead():  # what they said no longer holds
            tokens, wait_us = self._waiting()
            if waited_us + wait_us <= most_us:
                return
        waited = f"requests waited {waited_us / 1e6:.2f} s for the tokenizer, " if waited_us else ""
        raise OverloadedError(
            f"the server is overloaded: {waited}{tokens} tokens wait for the encoder, "
            f"{wait_us / 1e6:.2f} s of work; a request that may take {may_take_us / 1e6:.2f} s can "
            f"wait for {most_us / 1e6:.2f} s"
        )

    def join(self, tokens: int, deadline_us: int) -> Ticket:
        """Give a request that was admitted, and has so many tokens, its place."""
        begin, self._end = self._end, self._end + tokens
        self._page.head.handed_on = self._end
        return Ticket(deadline_us, self.queue, begin, self._end)

    def close(self) -> None:
        """Remove the page; those who have it open may go on writing."""
        self._page.close()
        self._path.unlink(missing_ok=True)

    def _waiting(self) -> tuple[int, float]:
        """Tokens that were handed on and are not computed, and the microseconds they will take."""
        lines = self._page.lines()
        since_us = self._now_us() - IDLE_AFTER_US
        if all(not line.is_busy and line.changed_us < since_us for line in lines):
            return 0, 0.0
        place = max((line.place for line in lines), default=self._end)
        tokens_a_us = sum(1000 / max(line.ns_per_token, 1) for line in lines)
        return self._end - place, (self._end - place) / tokens_a_us


class QueueExit:
    """One encoder's side: how far it has come, and how fast it is.

    Args:
        cost: Of a forward, as fitted at warm-up; what batches really take corrects it.
        directory: Of the pages.
        now_us: The clock.
    """

    def __init__(
        self,
        cost: CostModel,
        directory: Path | None = None,
        now_us: Callable[[], int] = monotonic_us,
    ) -> None:
        self._cost = cost
        self._directory = directory or default_directory()
        self._now_us = now_us
        self._outlets: dict[int, _Outlet] = {}
        self._started_us = self._ended_us = 0

    def begin(self) -> None:
        """A batch begins."""
        self._started_us = self._now_us()
        for outlet in self._outlets.values():
            outlet.line.is_busy = 1
            outlet.line.changed_us = self._started_us

    def see(self, ticket: Ticket, *, size: int, is_late: bool) -> None:
        """One of its requests.

        Args:
            ticket: Whoever calls the encoder directly can write any number on one: what the
                tokenizer cannot have written is left out.
            size: Of its arrays, padding included: it has no more tokens.
            is_late: It will not be computed.
        """
        outlet = self._outlets.get(ticket.queue) or self._open(ticket)
        if outlet is not None and ticket.end - ticket.begin <= size:
            outlet.take(ticket, is_late=is_late)

    def end(self) -> None:
        """The batch's answers are there."""
        now_us = self._now_us()
        is_next = self._started_us - self._ended_us < NEXT_WITHIN_US
        took_us = now_us - (self._ended_us if is_next else self._started_us)
        self._ended_us = now_us
        for outlet in self._outlets.values():
            outlet.finish(self._cost, took_us)
            outlet.line.changed_us = now_us

    def close(self) -> None:
        """Leave all queues."""
        for outlet in self._outlets.values():
            outlet.close()
        self._outlets.clear()

    def _open(self, ticket: Ticket) -> _Outlet | None:
        """The queue of a ticket, or None: nobody counts, or its page is no longer there."""
        if ticket.queue <= 0:
            return None
        for queue in [queue for queue, outlet in self._outlets.items() if outlet.page.is_gone()]:
            self._outlets.pop(queue).close()
        if len(self._outlets) >= MOST_QUEUES:
            return None
        with contextlib.suppress(OSError):
            descriptor = open_in_use(path_of(self._directory, ticket.queue), os.O_RDWR)
            if descriptor is None:
                return None
            page = Page(descriptor)
            line = page.claim()
            if line is None:
                page.close()
                return None
            line.is_busy, line.changed_us = 1, self._started_us
            self._outlets[ticket.queue] = outlet = _Outlet(page, line)
            outlet.say_speed(self._cost)
            return outlet
        return None


@dataclasses.dataclass
class _Outlet:
    """A queue that an encoder takes requests from.

    Attributes:
        page: Its page.
        line: The encoder's own line there.
        tokens: That the present batch computes.
        end: Where the present batch ends; None before its first ticket.
        slowness: What batches take, in what the cost model says.
    """

    page: Page
    line: Line
    tokens: int = 0
    end: int | None = None
    slowness: float = 1.0

    def take(self, ticket: Ticket, *, is_late: bool) -> None:
        if not 0 <= ticket.begin <= ticket.end <= self.page.head.handed_on:
            return
        # A number may come after a higher one, but what was passed stays passed.
        if self.end is None:
            self.line.place = max(self.line.place, ticket.begin)  # what is computed waits too
        self.end = max(self.end or 0, ticket.end)
        if not is_late:
            self.tokens += ticket.end - ticket.begin

    def finish(self, cost: CostModel, took_us: int) -> None:
        if self.tokens > 0:
            # Where a batch has requests of several queues, each sees its own tokens alone take all
            # of the time, and that is how fast its own queue gets shorter.
            found = took_us / (1000 * _predicted_ms(cost, self.tokens))
            weight = self.tokens / (self.tokens + REMEMBERED_TOKENS)
            self.slowness += weight * (found - self.slowness)
            self.say_speed(cost)
        if self.end is not None:
            self.line.place = max(self.line.place, self.end)
        self.line.is_busy = 0
        self.tokens, self.end = 0, None

    def say_speed(self, cost: CostModel) -> None:
        predicted_ms = _predicted_ms(cost, FULL_BATCH_TOKENS)
        self.line.ns_per_token = round(1e6 * self.slowness * predicted_ms / FULL_BATCH_TOKENS)

    def close(self) -> None:
        self.line.pid = 0
        self.page.close()


def _predicted_ms(cost: CostModel, tokens: int) -> float:
    return max(cost.fixed_ms + cost.token_ms * tokens, 1e-3)
