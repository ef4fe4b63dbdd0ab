"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable
from typing import Any

UNSETTLED = 2  # steps after the first compilation, which are slower than the rest
HALF_LIFE = 30.0  # seconds of training after which a step counts half in the rate that is shown


class Display:
    """What training shows while it runs: position, rate, time left, current metrics.

    On a terminal a live bar (rich); otherwise a line every `every` seconds, and in a long run every twentieth of its
    time so far, so that a log stays readable.
    """

    def __init__(self, total_steps: int, batch_size: int, epochs: float, *, quiet: bool = False, every: float = 15.0):
        self.total, self.batch, self.epochs, self.quiet, self.every = total_steps, batch_size, epochs, quiet, every
        self.began = self.spoke = time.monotonic()
        self.last: float | None = None
        self.steps, self.seconds, self.unsettled = 0.0, 0.0, UNSETTLED  # of the last while: older steps count for less
        self.waiting, self.wait = 0.0, 0.0  # seconds for data: of the steps that count, and of the next one
        self.bar: Any = None
        self.task: Any = None

    def __enter__(self) -> "Display":
        if not self.quiet and sys.stdout.isatty():
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self.bar = Progress(
                TextColumn("epoch {task.fields[epoch]}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
                TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), TextColumn("{task.fields[text]}"),
                transient=True,
            )  # fmt: skip
            self.bar.start()
            self.task = self.bar.add_task("", total=self.total, epoch="0", rate="", text="")
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        if self.quiet:
            return
        if self.bar is not None:
            self.bar.console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            print(text, flush=True)

    @property
    def rate(self) -> float:
        """Images per second of training alone, of late; 0 while that cannot be said."""
        return self.steps * self.batch / self.seconds if self.seconds else 0.0

    def waited(self, seconds: float) -> None:
        """The next step had to wait so long for its data."""
        self.wait += seconds

    def pause(self) -> None:
        """Something else than training goes on until the next step; it does not count in the rate."""
        self.last = None

    def update(self, step: int, loss: float) -> None:
        now = time.monotonic()
        if self.unsettled:
            self.unsettled -= 1
        elif self.last is not None:
            taken = now - self.last
            fading = 0.5 ** (taken / HALF_LIFE)
            self.steps, self.seconds = self.steps * fading + 1, self.seconds * fading + taken
            self.waiting = self.waiting * fading + self.wait
        self.last, self.wait = now, 0.0
        if not self._is_time(now):
            return
        rate, epoch = self.rate, f"{step / self.total * self.epochs:.1f}/{self.epochs:g}"
        if self.bar is not None:
            self.bar.update(self.task, completed=step, epoch=epoch, rate=self.speed(), text=f"loss {loss:.3f}")
        else:
            left = duration((self.total - step) * self.batch / rate) if rate else "?"
            print(f"  epoch {epoch}{self.speed()}  {left} left  loss {loss:.3f}", flush=True)

    def speed(self) -> str:
        """The rate, and how much of the time goes into waiting for the loader, as the end of a line."""
        if not self.rate:
            return ""
        return f"  {self.rate:,.0f} images/s, {100 * self.waiting / self.seconds:.0f} % waiting for data"

    def evaluating(self, split: str, total: int) -> Callable[[int], None]:
        """A function that shows how many of `total` images of a split are done."""

        def show(done: int) -> None:
            if not self._is_time(time.monotonic()):
                return
            text = f"{split} {done:,} of {total:,}"
            if self.bar is not None:
                self.bar.update(self.task, text=text)
            else:
                print(f"  {text}", flush=True)

        return show

    def _is_time(self, now: float) -> bool:
        wait = 0.1 if self.bar is not None else max(self.every, (self.spoke - self.began) / 20)
        if self.quiet or now - self.spoke < wait:
            return False
        self.spoke = now
        return True


def counted(number: float, noun: str) -> str:
    """ "1 epoch", "1.5 epochs"."""
    text = f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return f"{text} {noun}" + ("" if number == 1 else "s")


def duration(seconds: float) -> str:
    """95 -> "1m35s"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
