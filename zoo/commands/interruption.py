"""Early ends of long-running commands: after a signal, or when another process of the group fails, is lost or hangs."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from zoo.commands import SIGNAL_EXIT, UNFINISHED_EXIT
from zoo.commands.streams import exit_at_once, leave


def exit_code(signum: int) -> int:
    """Return the exit code of a run that a signal interrupted: 130 after Ctrl-C, else that of an unfinished run."""
    return SIGNAL_EXIT + signum if signum == signal.SIGINT else UNFINISHED_EXIT


@contextmanager
def interruptible(name: str, command: str) -> Iterator[Any]:
    """Yield the signals caught in the block, as `zoo.training.interruption.Caught`.

    Args:
        name: name of the command, such as "train".
        command: command line that resumes.
    """
    from zoo.distributed.notices import watch_notices
    from zoo.training.interruption import catch_signals

    def leave_unfinished(signum: int, doing: str) -> NoReturn:
        why = f"Interrupted while {doing} ({signal.Signals(signum).name})"
        tell_others(exit_code(signum), f"was interrupted while {doing} ({signal.Signals(signum).name})")
        end(exit_code(signum), f"zoo {name}: {why}; what was saved before is intact. {resume_advice(command)}")

    with catch_signals(exit_at_once, leave_unfinished) as caught, caught.nothing_unsaved("starting"):
        watch_notices()
        yield caught


def resume_advice(command: str) -> str:
    """Return how to go on."""
    return f"Repeat the command to resume: {command}"


def tell_others(code: int, message: str) -> None:
    """Have the other processes of the group, if there are any, end for the same reason. Does not import JAX."""
    watch = sys.modules.get("zoo.distributed.watch")
    if watch is not None:
        watch.tell_others(code, message)


def end(code: int, message: str) -> NoReturn:
    """Print a line on stderr and end the process at once, from any thread."""
    with suppress(OSError, ValueError):
        os.write(2, f"{message}\n".encode())
    leave(code)


def watch_group(name: str, hang_seconds: float) -> None:
    """End this command in one line when another process of its group fails, is lost or hangs."""
    from zoo.distributed import watch

    watch.start(lambda code, message: end(code, f"zoo {name}: {message}; this process ends too"), hang_seconds)
