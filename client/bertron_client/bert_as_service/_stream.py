"""`encode_async`: a generator's batches out, their answers in, a bounded number in between."""

from __future__ import annotations

import threading
from typing import Any, Callable, Generator, Iterator, TypeVar

from ._mailbox import Mailbox

Response = TypeVar("Response")

_END = object()


def stream(
    batches: Iterator[Any],
    mailbox: Mailbox[Response],
    send: Callable[[Any], None],
    *,
    max_unfetched: int,
) -> Generator[Response, None, None]:
    """Yield what comes into ``mailbox`` for the batches, as it arrives.

    A thread reads ``batches`` and waits when ``max_unfetched`` of them are not fetched. It ends
    when this generator does, or, where ``batches`` itself waits, at its next batch.

    Args:
        batches: Read to its end, unless the consumer stops before.
        mailbox: An open one, which only this call uses.
        send: Has the answer to a batch put into the mailbox.
        max_unfetched: See above.
    """
    room = threading.Semaphore(max_unfetched)
    is_over = threading.Event()

    def feed() -> None:
        try:
            while room.acquire() and not is_over.is_set():
                batch = next(batches, _END)
                if batch is _END or is_over.is_set():
                    break
                send(batch)
        except BaseException as error:
            mailbox.end(error)
        else:
            mailbox.end()

    threading.Thread(target=feed, name="bertron-encode-async", daemon=True).start()
    try:
        while True:
            response = mailbox.next()
            if response is None:
                return
            room.release()
            yield response
    finally:
        is_over.set()
        room.release()  # it may be what the thread waits for
        mailbox.give_up()
