"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from typing import Any


class Display:
    """What training shows while it runs: position, rate, time left, current metrics.

    On a terminal a live bar (rich); otherwise a line every `every` seconds, so that a log stays readable.
    """

    def __init__(self, total_steps: int, batch_size: int, epochs: float, *, quiet: bool = False, every: float = 15.0):
        self.total, self.batch, self.epochs, self.quiet, self.every = total_steps, batch_size, epochs, quiet, every
        self.started = self.spoke = time.monotonic()
        self.first: int | None = None
        self.bar: Any = None
        self.task: Any = None

    def __enter__(self) -> "Display":
        if not self.quiet and sys.stdout.isatty():
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self.bar = Progress(
                TextColumn("epoch {task.fields[epoch]}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
                TextColumn("{task.fields[rate]} images/s"), TimeRemainingColumn(), TextColumn("{task.fields[text]}"),
                transient=True,
            )  # fmt: skip
            self.bar.start()
            self.task = self.bar.add_task("", total=self.total, epoch="0", rate="-", text="")
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

    def rate(self, step: int) -> float:
        """Images per second since the first step that was shown."""
        if self.first is None or step <= self.first:
            return 0.0
        return (step - self.first) * self.batch / max(time.monotonic() - self.started, 1e-9)

    def update(self, step: int, loss: float) -> None:
        now = time.monotonic()
        if self.first is None:  # the clock starts after the compilation
            self.first, self.started, self.spoke = step, now, now
        if self.quiet or now - self.spoke < (0.1 if self.bar is not None else self.every):
            return
        self.spoke = now
        rate, epoch = self.rate(step), f"{step / self.total * self.epochs:.1f}/{self.epochs:g}"
        if self.bar is not None:
            self.bar.update(self.task, completed=step, epoch=epoch, rate=f"{rate:,.0f}", text=f"loss {loss:.3f}")
        else:
            left = duration((self.total - step) * self.batch / rate) if rate else "?"
            print(f"  epoch {epoch}  {rate:,.0f} images/s  {left} left  loss {loss:.3f}", flush=True)


def duration(seconds: float) -> str:
    """95 -> "1m35s"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
