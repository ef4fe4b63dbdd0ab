"""What must hold for every file that is read, and the check of one.

Limits: 10 s of processor time per file (60 s by the clock, since the machine may be busy), and 256 MiB of memory beyond
what the process had. Images, which may have up to 179 million pixels, may take 1 GiB. The HDF5 library reserves what a
text in a file claims to take, which is up to 4 GiB, before it notices that the text is not there.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_SECONDS = 10.0
MAX_BYTES = 256 * 2**20
MAX_IMAGE_BYTES = 2**30
MAX_HDF5_BYTES = 2**32 + MAX_BYTES

#: Audit events of code that is run, and of changes to files, processes and sockets.
FORBIDDEN = (
    "os.system", "os.exec", "os.spawn", "os.posix_spawn", "os.fork", "os.forkpty", "os.startfile", "os.kill",
    "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "os.chmod", "os.chown", "os.truncate",
    "os.putenv", "os.unsetenv", "subprocess.Popen", "shutil.", "socket.connect", "socket.bind", "socket.sendto",
    "pickle.find_class", "ctypes.", "code.__new__", "webbrowser.open", "pty.spawn", "urllib.Request",
    "ftplib.", "smtplib.", "sqlite3.", "sys.settrace", "sys.setprofile", "sys.addaudithook", "exec", "open",
)  # fmt: skip
#: Packages that readers import when they first need them.
IMPORTED = {
    "PIL", "ast", "codecs", "defusedxml", "encodings", "gzip", "h5py", "hashlib", "html", "json", "ml_dtypes", "numpy",
    "olefile", "pickletools", "safetensors", "stringprep", "struct", "tarfile", "tokenize", "unicodedata", "zipfile",
    "zlib", "zoo",
}  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class TooSlowError(BaseException):
    """A file took longer than MAX_SECONDS. Not an Exception, so that no reader turns it into its own error."""


@dataclass
class Outcome:
    """How reading a file ended.

    Attributes:
        accepted: True if it was read, False if it was refused.
        message: the refusal.
        seconds: the processor time it took.
        peak_bytes: growth of the process's memory at its peak.
        faults: what the contract forbids, one line each; empty if all is well.
    """

    accepted: bool = False
    message: str = ""
    seconds: float = 0.0
    peak_bytes: int = 0
    faults: list[str] = field(default_factory=list)


class Guard:
    """An audit hook, active while a file is read. Hooks cannot be removed, so there is one for the process."""

    def __init__(self) -> None:
        self.active = False
        self.events: list[str] = []
        self.writable: tuple[str, ...] = ()
        self.installed = False

    def watch(self, writable: tuple[Path, ...]) -> None:
        """Start to record events; files in the folders `writable` may be written."""
        if not self.installed:
            sys.addaudithook(self._hook)
            self.installed = True
        self.writable = tuple(str(folder) for folder in writable)
        self.events = []
        self.active = True

    def stop(self) -> list[str]:
        self.active = False
        return self.events

    def _hook(self, event: str, arguments: tuple) -> None:
        if not self.active:
            return
        if event == "import":
            package = str(arguments[0]).partition(".")[0]
            if package not in IMPORTED and not _imported_by_package():
                self.events.append(f"imports {arguments[0]!s:.80}")
            return
        if not event.startswith(FORBIDDEN):
            return
        self.active = False  # what follows may raise events itself
        try:
            if self._is_forbidden(event, arguments):
                self.events.append(f"{event} {arguments!r:.120}")
        finally:
            self.active = True

    def _is_forbidden(self, event: str, arguments: tuple) -> bool:
        if event == "exec":
            return not _importing()
        if event == "open":
            path, mode, flags = arguments
            writes = (isinstance(flags, int) and flags & WRITING) or (isinstance(mode, str) and set(mode) & set("wax+"))
            return bool(writes) and not self._may_write(path)
        if event.startswith(("os.", "shutil.")) and arguments:
            return not self._may_write(arguments[0])
        return True

    def _may_write(self, path: Any) -> bool:
        if isinstance(path, int):
            return True  # a descriptor that was opened before
        text = os.path.abspath(os.fsdecode(path))
        return text == os.devnull or any(text == folder or text.startswith(f"{folder}/") for folder in self.writable)


def _importing() -> bool:
    """Return True inside the import of a module, whose name was checked before."""
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _imported_by_package() -> bool:
    """Return True for an import inside the import of another module."""
    frame, depth = sys._getframe(2), 0
    while frame is not None:
        depth += frame.f_code.co_filename.startswith("<frozen importlib") and frame.f_code.co_name == "exec_module"
        frame = frame.f_back
    return depth > 0


GUARD = Guard()


def _memory(name: str) -> int:
    """Return a field of /proc/self/status in bytes; 0 where there is none."""
    try:
        with open("/proc/self/status", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
    except (OSError, StopIteration):
        return 0


def _reset_peak() -> None:
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TooSlowError after so many seconds of processor time, or six times as many by the clock."""

    def alarm(signum: int, frame: Any) -> None:
        raise TooSlowError

    before = [signal.signal(number, alarm) for number in (signal.SIGALRM, signal.SIGPROF)]
    signal.setitimer(signal.ITIMER_REAL, 6 * seconds)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in zip((signal.SIGALRM, signal.SIGPROF), before, strict=True):
            signal.signal(number, handler)


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files, by their paths relative to a new folder."""
    folder.mkdir(parents=True)
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def check(
    read: Callable[[Path], Any], folder: Path, max_bytes: int, cache: Path, seconds: float = MAX_SECONDS
) -> Outcome:
    """Read the files of a folder and check the contract.

    Args:
        read: the reader, called with the folder.
        folder: where the files are.
        max_bytes: limit of memory.
        cache: the only folder that may be written.
        seconds: limit of time.
    """
    outcome = Outcome()
    _reset_peak()
    before = _memory("VmRSS")
    begin = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        GUARD.watch((cache,))
        try:
            with time_limit(seconds):
                read(folder)
            outcome.accepted = True
        except TooSlowError:
            outcome.faults.append(f"takes longer than {seconds:g} s")
        except (ValueError, OSError) as error:
            outcome.message = str(error)
            place = _place(error)
            outcome.faults += [f"{fault} {place}" for fault in faults_of_message(error, folder)]
        except MemoryError as error:
            outcome.faults.append(f"MemoryError {_place(error)}")
        except Exception as error:
            outcome.faults.append(f"{type(error).__name__} {_place(error)}: {str(error)[:100]!r}")
        finally:
            events = GUARD.stop()
    outcome.seconds = time.process_time() - begin
    outcome.peak_bytes = max(_memory("VmHWM") - before, 0)
    if outcome.seconds > seconds and not outcome.faults:
        outcome.faults.append(f"takes longer than {seconds:g} s")
    if outcome.peak_bytes > max_bytes:
        outcome.faults.append(f"needs more than {max_bytes // 2**20} MiB")
    outcome.faults += [f"does what a file must not: {event}" for event in dict.fromkeys(events)]
    # Pillow warns about images that it reads; the command line does not print it.
    own = [warning for warning in caught if f"{os.sep}PIL{os.sep}" not in warning.filename]
    outcome.faults += [f"warns: {warning.category.__name__}: {str(warning.message)[:60]!r}" for warning in own[:3]]
    return outcome


def faults_of_message(error: BaseException, folder: Path) -> list[str]:
    """Return what is wrong with a refusal: it must be one printable line of bounded length that names the file."""
    message = str(error)
    faults = []
    if isinstance(error, OSError) and error.filename:  # the command line puts the file first
        message = f"{error.filename}: {error.strerror}"
    if not message.isprintable():
        faults.append("refusal is not one printable line")
    names = {folder.name, *(path.name for path in folder.rglob("*"))}
    if not any(name in message for name in names):
        faults.append("refusal does not name the file")
    if len(message) > 1000 + 4 * len(str(folder)):
        faults.append("refusal is longer than 1,000 characters")
    return faults


def _place(error: BaseException) -> str:
    """Return the last line of the package that an error passed through."""
    place, trace = "", error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if f"{os.sep}zoo{os.sep}" in file:
            place = f"in {file.rpartition(f'{os.sep}zoo{os.sep}')[2]}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
