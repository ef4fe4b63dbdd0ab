"""Threads that work on many images in parallel: Pillow releases the interpreter lock while it decodes and resizes."""

from __future__ import annotations

import math
import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from zoo.text import unescaped

T = TypeVar("T")
DecodeTask = Callable[[], None]  # decodes a few images; tasks may run in any order
MIN_LOOKAHEAD = 2  # items that `prefetch` works ahead at least


def processors() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def tracked(steps: range, description: str) -> Iterable[int]:
    """Iterate over `steps` with a progress bar on stderr if that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(file=unescaped(sys.stderr))
    return track(steps, description, console=console, transient=True, disable=not console.is_terminal)


def run_all(tasks: Sequence[DecodeTask], workers: int | None, description: str) -> None:
    """Run all tasks under a progress bar.

    Args:
        tasks: the tasks.
        workers: number of threads, as in `prefetch`.
        description: text of the progress bar.

    Raises:
        Exception: the first error of a task, after which no further task is started.
    """
    if workers == 0:
        for number in tracked(range(len(tasks)), description):
            tasks[number]()
        return
    pool = ThreadPoolExecutor(workers or processors(), thread_name_prefix="zoo-loader")
    try:
        futures = [pool.submit(task) for task in tasks]
        for number in tracked(range(len(futures)), description):
            futures[number].result()
    finally:
        pool.shutdown(cancel_futures=True)


def lookahead(items: Iterable[T], depth: Callable[[T], int] = lambda item: 1) -> Generator[T]:
    """Yield `items` in order, after taking up to `depth` further ones from the iterable.

    Args:
        items: an iterable in which taking an item starts some work.
        depth: the number of items to take ahead, given the item taken last; 1 by default.
    """
    waiting: deque[T] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > depth(item):
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


def prefetch(planned: Iterator[tuple[T, Sequence[DecodeTask]]], workers: int | None) -> Generator[T]:
    """Yield items in order, each after its tasks are done, while threads work at least MIN_LOOKAHEAD items ahead.

    Args:
        planned: pairs of an item and the tasks that complete it.
        workers: number of threads; 0 runs the tasks when the item is requested, None uses one thread per processor.
            The threads end when the generator is closed.

    Raises:
        Exception: the error of a task, in place of its item.
    """
    workers = processors() if workers is None else workers
    if not workers:
        for item, tasks in planned:
            for task in tasks:
                task()
            yield item
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="zoo-loader")

    def depth(submitted: tuple[T, list[Future[None]]]) -> int:
        return max(MIN_LOOKAHEAD, math.ceil(2 * workers / max(1, len(submitted[1]))))

    try:
        submitted = ((item, [pool.submit(task) for task in tasks]) for item, tasks in planned)
        for item, futures in lookahead(submitted, depth):
            for future in futures:
                future.result()
            yield item
    finally:
        pool.shutdown(cancel_futures=True)
