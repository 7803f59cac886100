"""How far a long call has come."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import Callable, Iterator, Union

ProgressOption = Union[bool, None, Callable[[int], object]]


@contextmanager
def progress_of(progress: ProgressOption, total: int) -> Iterator[Callable[[int], object]]:
    """Give a function that takes the number of texts done since its last call.

    Args:
        progress: False or None for none, True for a bar of tqdm's, or a function of the caller's
            own. It is called by one thread at a time.
        total: Texts in all.

    Raises:
        ImportError: A bar is wanted and tqdm is not installed.
    """
    if not (progress or callable(progress)):
        yield _ignore
        return
    lock = threading.Lock()
    if callable(progress):
        report = progress

        def on_done(count: int) -> None:
            with lock:
                report(count)

        yield on_done
        return
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError(
            "progress=True needs the package tqdm; run `pip install tqdm`, or give a function"
        ) from error
    with tqdm(total=total, unit="text") as bar:

        def advance(count: int) -> None:
            with lock:
                bar.update(count)

        yield advance


def _ignore(_count: int) -> None:
    """Nobody asked."""
