"""Progress of long work: a bar on a terminal, plain lines otherwise."""

import sys
import time
from collections.abc import Callable
from typing import Any

from zoo.text import printable, unescaped

#: Steps after a compilation that are not timed, because they are slower.
WARMUP_STEPS = 2

#: Seconds of training after which a step has half its weight in the displayed rate.
HALF_LIFE = 30.0

#: Seconds between lines without a terminal, and between updates of the bar on one.
LINE_INTERVAL, BAR_INTERVAL = 15.0, 0.1


class Display:
    """Progress of a training run: position, rate, time left and current metrics.

    On a terminal a live bar (rich). Otherwise a line every `interval` seconds, and in a long run after every twentieth
    of the elapsed time, so that a log stays readable.

    Args:
        total_steps: steps of the run.
        batch_size: images per step.
        epochs: epochs of the run.
        quiet: print nothing.
        interval: seconds between lines.
        live: show the bar on a terminal.
        rephrase: applied to lines that stay, such as `in_terms_of_arguments` for a caller in Python.
    """

    def __init__(
        self,
        total_steps: int,
        batch_size: int,
        epochs: float,
        *,
        quiet: bool = False,
        interval: float = LINE_INTERVAL,
        live: bool = True,
        rephrase: Callable[[str], str] = str,
    ):
        self.total_steps, self.batch_size, self.epochs = total_steps, batch_size, epochs
        self.quiet, self.interval, self.live, self.rephrase = quiet, interval, live, rephrase
        self.start_time = self.output_time = time.monotonic()
        self.step_time: float | None = None  # when the last step ended
        self.warmup_left = WARMUP_STEPS
        self.steps, self.seconds, self.data_seconds = 0.0, 0.0, 0.0  # with exponentially decaying weights
        self.pending_data_seconds = 0.0  # data wait of the next step
        self.bar: Any = None
        self.task: Any = None

    def __enter__(self) -> "Display":
        if self.live and not self.quiet and sys.stdout.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self.bar = Progress(
                TextColumn("epoch {task.fields[epoch]}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
                TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), TextColumn("{task.fields[text]}"),
                transient=True, console=Console(file=unescaped(sys.stdout)),
            )  # fmt: skip
            self.bar.start()
            self.task = self.bar.add_task("", total=self.total_steps, epoch="0", rate="", text="")
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def say(self, text: str) -> None:
        """Print a line that stays."""
        if self.quiet:
            return
        text = self.rephrase(text)
        if self.bar is not None:
            self.bar.console.print(printable(text), highlight=False, markup=False, soft_wrap=True)
        else:
            print(text, flush=True)

    @property
    def rate(self) -> float:
        """Recent images per second of training alone; 0 while unknown."""
        return self.steps * self.batch_size / self.seconds if self.seconds else 0.0

    def add_data_wait(self, seconds: float) -> None:
        """Record that the next step waited for its data."""
        self.pending_data_seconds += seconds

    def pause(self) -> None:
        """Leave the time until the next step out of the rate: something other than training follows."""
        self.step_time = None

    def update(self, step: int, loss: float) -> None:
        """Record the end of a step and show progress if it is time to."""
        now = time.monotonic()
        if self.warmup_left:
            self.warmup_left -= 1
        elif self.step_time is not None:
            elapsed = now - self.step_time
            decay = 0.5 ** (elapsed / HALF_LIFE)
            self.steps, self.seconds = self.steps * decay + 1, self.seconds * decay + elapsed
            self.data_seconds = self.data_seconds * decay + self.pending_data_seconds
        self.step_time, self.pending_data_seconds = now, 0.0
        if not self._is_due(now):
            return
        rate, epoch = self.rate, f"{step / self.total_steps * self.epochs:.1f}/{self.epochs:g}"
        if self.bar is not None:
            self.bar.update(self.task, completed=step, epoch=epoch, rate=self.speed(), text=f"loss {loss:.3f}")
        else:
            left = format_duration((self.total_steps - step) * self.batch_size / rate) if rate else "?"
            print(f"  epoch {epoch}{self.speed()}  {left} left  loss {loss:.3f}", flush=True)

    def speed(self) -> str:
        """Return the rate and the share of time spent waiting for data, as the end of a line."""
        if not self.rate:
            return ""
        return f"  {self.rate:,.0f} images/s, {100 * self.data_seconds / self.seconds:.0f} % waiting for data"

    def show_evaluation(self, split: str, total: int) -> Callable[[int], None]:
        """Return a callback that shows how many of `total` images of a split are evaluated."""

        def show(done: int) -> None:
            if not self._is_due(time.monotonic()):
                return
            text = f"{split} {done:,} of {total:,}"
            if self.bar is not None:
                self.bar.update(self.task, text=text)
            else:
                print(f"  {text}", flush=True)

        return show

    def _is_due(self, now: float) -> bool:
        elapsed = self.output_time - self.start_time
        wait = BAR_INTERVAL if self.bar is not None else max(self.interval, elapsed / 20)
        if self.quiet or now - self.output_time < wait:
            return False
        self.output_time = now
        return True


def format_count(number: float, noun: str) -> str:
    """Format a number with a noun: "1 epoch", "1.5 epochs"."""
    text = f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return f"{text} {noun}" + ("" if number == 1 else "s")


def format_duration(seconds: float) -> str:
    """Format seconds: 95 -> "1m35s"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
