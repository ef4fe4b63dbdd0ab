"""The `zoo` program as a forked process, so that it can be killed, and what it left behind can be compared."""

import faulthandler
import hashlib
import json
import mmap
import os
import signal
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

#: One thread per library: several would compete for the few cores, and a process with threads must not fork.
SETTINGS = {
    "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PJRT_NPROC": "1",
    "ZOO_MESH": "data=1", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}  # fmt: skip

#: File operations of Python before which a process can kill itself.
FILE_EVENTS = frozenset(("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.listdir", "os.scandir"))


def prepare(cache: Path) -> None:
    """Set the environment of all programs and import what they use. Nothing may have used JAX before."""
    os.environ.update(
        {**SETTINGS, "JAX_COMPILATION_CACHE_DIR": str(cache), "HOME": str(cache), "XDG_CACHE_HOME": str(cache)}
    )
    import matplotlib.figure  # noqa: F401
    import PIL.Image  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import tensorboardX  # noqa: F401
    from orbax.checkpoint import v1  # noqa: F401

    import zoo.api
    import zoo.cli
    import zoo.commands.train
    import zoo.training.plots  # noqa: F401


class Counter:
    """An integer that forked processes share with this one."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8)

    @property
    def value(self) -> int:
        return struct.unpack("q", self._memory[:8])[0]

    @value.setter
    def value(self, number: int) -> None:
        self._memory[:8] = struct.pack("q", number)


@dataclass
class Program:
    """A running program.

    Attributes:
        pid: its process, which leads a group of its own.
        output: file with its stdout.
        errors: file with its stderr.
        code: the exit code, negative after a signal; None while it runs.
    """

    pid: int
    output: Path
    errors: Path
    code: int | None = None

    def poll(self) -> int | None:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def wait(self, seconds: float = 1800.0) -> int:
        """Return the exit code; kill the program and raise TimeoutError after `seconds`."""
        deadline = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.signal(signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise TimeoutError(f"process {self.pid} did not end in {seconds:.0f} s")
            time.sleep(0.005)
        return self.code

    def cpu_seconds(self) -> float:
        """Return the processor time that the running program has used; 0 once it has ended."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def signal(self, signum: int) -> None:
        if self.code is None:
            os.kill(self.pid, signum)

    def said(self) -> str:
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def complained(self) -> str:
        return self.errors.read_text(errors="replace") if self.errors.exists() else ""


def start(
    words: Sequence[str],
    folder: Path,
    *,
    name: str = "program",
    environment: Mapping[str, str] | None = None,
    before: Callable[[], Any] | None = None,
    call: Callable[[], Any] | None = None,
) -> Program:
    """Fork a process that runs `zoo WORDS` in a folder.

    Args:
        words: the command line after `zoo`.
        folder: its current folder, where stdout and stderr are written to NAME.out and NAME.err.
        name: name of these files.
        environment: further variables.
        before: called in the process first.
        call: called instead of the command line; its exit code is 0.
    """
    program = Program(0, folder / f"{name}.out", folder / f"{name}.err")
    sys.stdout.flush()
    sys.stderr.flush()
    program.pid = os.fork()
    if program.pid:
        return program
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        _redirect(0, Path(os.devnull), os.O_RDONLY)
        _redirect(1, program.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        _redirect(2, program.errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.environ.update(environment or {})
        faulthandler.register(signal.SIGUSR2)
        if before is not None:
            before()
        code = _run(words, call)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                code = code or 120
        os._exit(code & 255)


def _redirect(descriptor: int, file: Path, flags: int) -> None:
    target = os.open(file, flags)
    os.dup2(target, descriptor)
    os.close(target)


def _run(words: Sequence[str], call: Callable[[], Any] | None) -> int:
    if call is not None:
        call()
        return 0
    from zoo import cli

    sys.argv = ["zoo", *words]
    cli.run(list(words))
    return 0


def count_file_events(folder: Path, counter: Counter, deadly: int = 0) -> None:
    """Count the file operations of this process in a folder; SIGKILL this process before the `deadly`-th (0: never)."""
    prefix = str(folder.absolute())

    def hook(event: str, arguments: tuple) -> None:
        if event not in FILE_EVENTS or not arguments or isinstance(arguments[0], int) or arguments[0] is None:
            return
        path = os.path.abspath(os.fsdecode(arguments[0]))
        if path.startswith(prefix):
            counter.value += 1
            if counter.value == deadly:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def digests(folder: Path, scratch: Path) -> dict[str, str]:
    """Return the sha256 of everything that two runs must have in common, by name.

    These are arrays, card, progress, logs, results and figures. They are computed in a process of its own, because this
    one must not use JAX.
    """
    file = scratch / "digests.json"
    file.unlink(missing_ok=True)

    def compute() -> None:
        from helpers import run_bits

        found = {name: hashlib.sha256(repr(part).encode()).hexdigest() for name, part in run_bits(folder).items()}
        file.write_text(json.dumps(found))

    program = start((), scratch, name="digests", call=compute)
    if program.wait(120):
        raise RuntimeError(f"{folder}: cannot be read: {program.complained()}")
    return json.loads(file.read_text())


def leftovers(folder: Path) -> list[str]:
    """Return what a finished run should not contain: temporary files and folders, replaced ones, a third save."""
    found = [str(path.relative_to(folder)) for path in folder.rglob(".*") if path.name != ".lock"]
    saves = sorted((folder / "state").glob("step_*"))
    return found + [str(path.relative_to(folder)) for path in saves[:-2]]
