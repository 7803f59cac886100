"""Requests that nobody waits for yet: who sends them, and where their answers lie until fetched."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Callable, Deque, Dict, Generic, Optional, Set, TypeVar

from ._deadline import Deadline

Response = TypeVar("Response")


class Sender:
    """A few threads that ask; each ends when there is nothing left to ask.

    They are daemons: a program that ends does not wait for answers that it never fetched.
    """

    def __init__(self, max_threads: int) -> None:
        self._max_threads = max_threads
        self._lock = threading.Lock()
        self._waiting: Deque[Callable[[], None]] = deque()
        self._threads = 0
        self._is_closed = False

    def submit(self, task: Callable[[], None]) -> None:
        """Have ``task`` run soon; it raises nothing.

        Raises:
            RuntimeError: The client is closed.
        """
        with self._lock:
            if self._is_closed:
                raise RuntimeError("the client is closed")
            self._waiting.append(task)
            if self._threads < self._max_threads:
                self._threads += 1
                threading.Thread(target=self._run, name="bertron-sender", daemon=True).start()

    def close(self) -> None:
        """Take nothing more; what waits is passed over once its mailbox has given it up."""
        with self._lock:
            self._is_closed = True

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._threads -= 1
                    return
                task = self._waiting.popleft()
            task()


@dataclass(frozen=True)
class _Outcome(Generic[Response]):
    """What a request ended with: an answer or an error."""

    request_id: int
    response: Optional[Response]
    error: Optional[BaseException]


class Mailbox(Generic[Response]):
    """Answers in their order of arrival, each handed out once, none later than its deadline.

    Args:
        sender: Who asks.
        is_open: Whether more may be sent though nothing is awaited; ``end`` ends that.
    """

    def __init__(self, sender: Sender, *, is_open: bool = False) -> None:
        self._sender = sender
        self._changed = threading.Condition()
        self._awaited: Dict[int, Deadline] = {}
        self._arrived: Deque[_Outcome[Response]] = deque()
        self._is_open = is_open
        self._last_error: Optional[BaseException] = None

    def pending(self) -> Set[int]:
        """The requests whose answers have not been fetched."""
        with self._changed:
            return {*self._awaited, *(outcome.request_id for outcome in self._arrived)}

    def send(self, request_id: int, ask: Callable[[], Response], deadline: Deadline) -> None:
        """Have ``ask`` called by a sender; its answer or its error can be fetched here."""
        with self._changed:
            self._awaited[request_id] = deadline
            self._changed.notify_all()  # its time may end first
        try:
            self._sender.submit(lambda: self._ask(request_id, ask))
        except RuntimeError:
            with self._changed:
                del self._awaited[request_id]
            raise

    def next(self) -> Optional[Response]:
        """Return the next answer, waiting for it; None when none is to come.

        Raises:
            BaseException: What the request ended with; it is then over, and others go on.
        """
        with self._changed:
            while not self._arrived:
                if not self._awaited and not self._is_open:
                    error, self._last_error = self._last_error, None
                    if error is not None:
                        raise error
                    return None
                self._wait()
            outcome = self._arrived.popleft()
        if outcome.error is not None:
            if hasattr(outcome.error, "add_note"):  # Python 3.11
                outcome.error.add_note(f"It ended request {outcome.request_id} of this client.")
            raise outcome.error
        return outcome.response

    def give_up(self) -> None:
        """Drop all answers, also those to come."""
        with self._changed:
            self._awaited.clear()
            self._arrived.clear()
            self._changed.notify_all()

    def end(self, error: Optional[BaseException] = None) -> None:
        """Nothing more will be sent; ``error`` is raised behind the last answer."""
        with self._changed:
            self._is_open = False
            self._last_error = error
            self._changed.notify_all()

    def _ask(self, request_id: int, ask: Callable[[], Response]) -> None:
        with self._changed:
            if request_id not in self._awaited:
                return
        response: Optional[Response] = None
        failure: Optional[BaseException] = None
        try:
            response = ask()
        except BaseException as error:
            failure = error
        with self._changed:
            # A late answer is dropped here: nobody would ever fetch it.
            if self._awaited.pop(request_id, None) is not None:
                self._arrived.append(_Outcome(request_id, response, failure))
                self._changed.notify_all()

    def _wait(self) -> None:
        """Wait for any change, and no longer than the request whose time ends first may take."""
        if not self._awaited:
            self._changed.wait()
            return
        first = min(self._awaited, key=lambda request_id: self._awaited[request_id].at)
        left = self._awaited[first].at - time.monotonic()
        if left <= 0:
            raise self._awaited.pop(first).exceeded(f"no answer to request {first}")
        self._changed.wait(left)
