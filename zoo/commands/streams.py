"""Standard output and error of the `zoo` program, and its end: lost readers, narrow encodings, exit codes."""

import os
import signal
import sys
import threading
from contextlib import suppress
from typing import Any, NoReturn, TextIO

from zoo.commands import SIGNAL_EXIT
from zoo.text import printable


def prepare_streams(persistent: bool = False) -> None:
    """Make stdout and stderr usable: a closed one discards its text, characters that the locale lacks are escaped.

    Control characters are escaped too: names from files cannot change the terminal.

    Args:
        persistent: discard what can no longer be written (`| head`, a lost connection), and keep the program running.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed before the program started
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        # An error that cannot be written, such as to a log on a full disk, must not change the exit code.
        setattr(sys, name, _Escaping(getattr(sys, name), persistent or name == "stderr"))


class _Persistent:
    """A text stream that can discard its text once writing fails, so that work goes on without a reader."""

    def __init__(self, stream: TextIO, persistent: bool):
        self._stream, self._persistent = stream, persistent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            if not self._persistent:
                raise
            self._discard()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            if not self._persistent:
                raise
            self._discard()

    def _discard(self) -> None:
        """Point the descriptor at the null device, where text that is still buffered goes too."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)


class _Escaping(_Persistent):
    """A text stream that escapes control characters; `unescaped` is the stream without."""

    def __init__(self, stream: TextIO, persistent: bool):
        super().__init__(stream, persistent)
        self.unescaped = _Persistent(stream, persistent)

    def write(self, text: str) -> int:
        return super().write(printable(text))


def exit_at_once(signum: int, frame: Any = None) -> NoReturn:
    """Handle a signal by ending the process at once, without waiting for threads or for a save in progress."""
    os.write(2, b"zoo: ended before the save was complete; the save before it is intact\n")
    os._exit(SIGNAL_EXIT + signum)


def end_on_signal(code: int) -> None:
    """End with an exit code, and without a traceback, if a signal arrives from now on: the work is done."""
    if threading.current_thread() is not threading.main_thread():
        return
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda signum, frame: os._exit(code))


def leave(code: int) -> NoReturn:
    """End the process with an exit code after writing what is buffered, without waiting for threads or other hosts."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
