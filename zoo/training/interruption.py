"""Signals that end a run: the state is saved, or was, within half a minute, whatever the process is doing.

Python runs a handler only between two of its instructions, and compilation or a slow step is a single one. A thread
therefore reads the signals as well, through `signal.set_wakeup_fd`. Where everything is saved already (before the first
step, while compiling, while the report is written) it ends the process; elsewhere the loop saves after the step that is
running. If that takes longer than LEAVE_SECONDS, the thread ends the process, and the run resumes from its latest save.
"""

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NoReturn

#: Signals after which a run saves its state and ends: keyboard, scheduler, lost terminal, Slurm's --signal=USR1.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))
#: Seconds after the first signal during which further ones are ignored.
GRACE_SECONDS = 1.0
#: Seconds after a signal within which the loop must have begun to save.
LEAVE_SECONDS = 20.0
#: Seconds after a signal in which the report of a finished training may still be completed.
REPORT_SECONDS = 5.0
POLL_SECONDS = 0.2

#: Ends the process: (signal, what it was doing).
Leave = Callable[[int, str], NoReturn]


class InterruptedRunError(Exception):
    """Raised after a signal, once the state is saved.

    Attributes:
        signum: the signal's number.
    """

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum = signum


class Caught(list[int]):
    """The first of SIGNALS that arrived, if any, and what the process is doing, which decides how it ends."""

    def __init__(self, leave: Leave | None = None) -> None:
        super().__init__()
        self.leave = leave
        self.doing = ""
        self.allowed = LEAVE_SECONDS
        self.is_saving = False
        #: The run has ended, or was saved after a signal: another changes neither what is left nor the exit code.
        self.is_complete = False
        #: Installs the handlers again, after a library has installed its own.
        self.install: Callable[[], Any] = lambda: None

    @contextmanager
    def nothing_unsaved(self, doing: str, seconds: float = 0.0) -> Iterator[None]:
        """Mark a block in which the process may end, `seconds` after a signal, since everything is saved."""
        if self and not seconds and self.leave:
            self.leave(self[0], doing)
        with self._allowing(doing, seconds):
            yield

    def at_work(self) -> AbstractContextManager[None]:
        """Mark a block, inside of one in which nothing is unsaved, that the process may end only after a save."""
        return self._allowing("", LEAVE_SECONDS)

    @contextmanager
    def _allowing(self, doing: str, seconds: float) -> Iterator[None]:
        before = self.doing, self.allowed
        self.doing, self.allowed = doing, seconds
        try:
            yield
        finally:
            self.doing, self.allowed = before

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Mark a save, which may take its time."""
        self.is_saving = True
        try:
            yield
        finally:
            self.is_saving = False

    def watch(self, descriptor: int) -> None:
        """Read signals until the other end of the pipe is closed, and end the process when its time is over."""
        arrived: tuple[int, float] | None = None
        while True:
            if select.select([descriptor], [], [], POLL_SECONDS if arrived else None)[0]:
                numbers = os.read(descriptor, 64)
                if not numbers:
                    return
                if arrived is None and (found := [number for number in numbers if number in SIGNALS]):
                    arrived = found[0], time.monotonic()
            if self.is_complete or self.is_saving:
                continue
            if arrived and time.monotonic() - arrived[1] >= self.allowed and self.leave:
                self.leave(arrived[0], self.doing or f"working on a step that did not end in {self.allowed:g} s")


@contextmanager
def catch_signals(second: Callable[[int, Any], Any] | None = None, leave: Leave | None = None) -> Iterator[Caught]:
    """Yield a list to which the first of SIGNALS is appended. SIGHUP stays ignored if it is (`nohup`).

    Args:
        second: handler of a SIGINT that arrives GRACE_SECONDS or more after the first signal; None for the handler that
            was installed before. All others are ignored: schedulers signal a process, then its group, then again.
            If `second` is given, the process is about to end, so after a signal no handler is restored.
        leave: ends the process where everything is saved, and where saving is not possible in time; None if it may
            only be ended by an exception, as in a program that uses this package.
    """
    caught = Caught(leave)
    arrived: list[float] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def record(signum: int, frame: Any) -> None:
        if not caught:
            caught.append(signum)
            arrived.append(time.monotonic())
        elif signum == signal.SIGINT and time.monotonic() - arrived[0] >= GRACE_SECONDS:
            handler = second or previous[signum]
            if callable(handler):
                handler(signum, frame)
            else:
                signal.signal(signum, handler)
                os.kill(os.getpid(), signum)

    # Shells ignore SIGINT in background jobs, where a scheduler may send it all the same: only SIGHUP is left ignored.
    previous = {int(signum): signal.getsignal(signum) or signal.SIG_DFL for signum in SIGNALS}
    if hasattr(signal, "SIGHUP") and previous[signal.SIGHUP] == signal.SIG_IGN:
        del previous[signal.SIGHUP]
    with _watched(caught):
        caught.install = lambda: [signal.signal(signum, record) for signum in previous]
        caught.install()
        try:
            yield caught
        finally:
            if not (caught and second):
                for signum, handler in previous.items():
                    signal.signal(signum, handler)


@contextmanager
def _watched(caught: Caught) -> Iterator[None]:
    """Have a thread read the signals of the block, if they may end the process."""
    if caught.leave is None:
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread = threading.Thread(target=caught.watch, args=(reader,), name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)
        thread.join()
        os.close(reader)
