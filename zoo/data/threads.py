"""Work on many images at once, by threads: Pillow lets go of the interpreter while it decodes and resizes."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
Pieces = Sequence[Callable[[], None]]  # of work, to be done in any order
READ_AHEAD = 2  # things


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def tracked(steps: range, text: str) -> Iterable[int]:
    """The steps, with a bar on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(steps, text, console=console, transient=True, disable=not console.is_terminal)


def run_all(pieces: Pieces, workers: int | None, text: str) -> None:
    """Do all pieces, under a bar that says `text`; workers as in `prefetch`. The first error ends it."""
    if workers == 0:
        for piece in tracked(range(len(pieces)), text):
            pieces[piece]()
        return
    pool = ThreadPoolExecutor(workers or processors(), thread_name_prefix="zoo-loader")
    try:
        futures = [pool.submit(piece) for piece in pieces]
        for number in tracked(range(len(futures)), text):
            futures[number].result()
    finally:
        pool.shutdown(cancel_futures=True)


def prefetch(planned: Iterator[tuple[T, Pieces]], workers: int | None) -> Generator[T]:
    """The planned things in their order, once their pieces are done, at least READ_AHEAD of them ahead.

    Args:
        planned: pairs of a thing and the pieces of work that complete it.
        workers: threads, which end when this is closed; 0: no thread, and nothing ahead; None: one per processor.

    Raises:
        whatever a piece raises, when its thing's turn comes.
    """
    workers = processors() if workers is None else workers
    if not workers:
        for thing, pieces in planned:
            for piece in pieces:
                piece()
            yield thing
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="zoo-loader")
    waiting: deque[tuple[T, list[Future[None]]]] = deque()

    def finished() -> T:
        thing, futures = waiting.popleft()
        for future in futures:
            future.result()
        return thing

    try:
        for thing, pieces in planned:
            waiting.append((thing, [pool.submit(piece) for piece in pieces]))
            if len(waiting) > max(READ_AHEAD, math.ceil(2 * workers / max(1, len(pieces)))):
                yield finished()
        while waiting:
            yield finished()
    finally:
        pool.shutdown(cancel_futures=True)
