"""What surrounds a training fails: disk, folder, signals, pipes, threads. Each ends with the right code and one line.

Each function here returns a line per fault, and none if everything ended as it should.
"""

import ctypes
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from zoo.commands.interruption import exit_code

from . import programs
from .programs import Program

#: A training of a second, with several saves.
TRAIN = shlex.split(
    "train --model mlp --set widths=(8,) --data digits --limit 60 --epochs 4 --batch-size 20 --save-steps 2 "
    "--workdir run"
)


def judge(program: Program, codes: tuple[int, ...], *named: str) -> list[str]:
    """Return faults of an ended program: another exit code, a traceback, several lines, or what is not named."""
    program.wait()
    errors = program.complained().strip()
    faults = []
    if program.code not in codes:
        faults.append(f"ended with {program.code} instead of {' or '.join(map(str, codes))}: {errors[-300:]!r}")
    if "Traceback" in errors or "Exception ignored" in errors:
        faults.append(f"traceback: {errors[-300:]!r}")
    elif len(errors.splitlines()) > 1:
        faults.append(f"several lines: {errors[:500]!r}")
    if program.code:
        faults += [f"does not name {name}: {errors[:300]!r}" for name in named if name not in errors]
    return faults


def fresh(folder: Path, name: str) -> Path:
    place = folder / name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    return place


def must_finish(place: Path, want: dict[str, str]) -> list[str]:
    """Repeat the command in peace: it ends with the bits of an undisturbed run."""
    program = programs.start(TRAIN, place, name="again")
    if faults := judge(program, (0,)):
        return [f"repeated: {fault}" for fault in faults]
    found = programs.digests(place / "run", place)
    different = sorted(key for key in want if found[key] != want[key])
    extra = programs.leftovers(place / "run")
    return [f"different {', '.join(different)}"] * bool(different) + [f"left behind {', '.join(extra)}"] * bool(extra)


def undisturbed(folder: Path) -> dict[str, str]:
    """Train without faults and return the digests."""
    place = fresh(folder, "undisturbed")
    program = programs.start(TRAIN, place)
    if faults := judge(program, (0,)):
        raise RuntimeError(faults[0])
    return programs.digests(place / "run", place)


# --- disk and folder -------------------------------------------------------------------------------------------------


def limit_file_size(size: int) -> None:
    """Let every write beyond `size` bytes of a file fail, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def full_disk(folder: Path, want: dict[str, str], sizes: tuple[int, ...] = (0, 100, 700, 3000, 20_000)) -> list[str]:
    """Files that cannot grow: one line, exit code 2, the state before intact, and the same command goes on later."""
    faults = []
    for size in sizes:
        place = fresh(folder, f"full{size}")
        program = programs.start(TRAIN, place, before=partial(limit_file_size, size))
        found = judge(program, (0, 2)) + must_finish(place, want)
        faults += [f"files of at most {size} bytes: {fault}" for fault in found]
    return faults


def full_tmpfs(folder: Path, want: dict[str, str], sizes: tuple[str, ...] = ("60k", "200k", "400k")) -> list[str]:
    """A file system without space, if one may be mounted: as `full_disk`; then there is room, and the run goes on."""
    faults = []
    for size in sizes:
        place = fresh(folder, f"tmpfs{size}")
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            return []
        try:
            program = programs.start(TRAIN, place, name="../full")
            found = judge(program, (2,))
            subprocess.run(["mount", "-o", "remount,size=50m", str(place)], check=True)
            found += must_finish(place, want)
        finally:
            subprocess.run(["umount", str(place)], check=True)
        faults += [f"tmpfs of {size}: {fault}" for fault in found]
    return faults


def drop_capabilities() -> None:
    """Make permissions hold for this process even if it is root's; as another user it might not read its modules."""
    version_3, this_process = 0x20080522, 0
    header = (ctypes.c_uint32 * 2)(version_3, this_process)
    if ctypes.CDLL(None, use_errno=True).capset(header, (ctypes.c_uint32 * 6)()):
        raise OSError(ctypes.get_errno(), "capset")


def read_only(folder: Path, want: dict[str, str]) -> list[str]:
    """A folder without permission to write: one line, exit code 2, and nothing is written."""
    place = fresh(folder, "read-only")
    place.chmod(0o555)

    outside = fresh(folder, "read-only-output")
    words = [*TRAIN[:-1], str(place / "run")]
    program = programs.start(words, outside, before=drop_capabilities)
    faults = judge(program, (2,), str(place))
    place.chmod(0o755)
    return [f"read-only folder: {fault}" for fault in faults] + (["files were written"] if any(place.iterdir()) else [])


def removed_folder(folder: Path, want: dict[str, str]) -> list[str]:
    """The run's folder is deleted while it trains: one line that names it, and the command starts anew."""
    place = fresh(folder, "removed")
    program = programs.start([*TRAIN, "--epochs", "400"], place)
    if wait_until(lambda: list((place / "run").glob("state/step_*")), program):
        shutil.rmtree(place / "run", ignore_errors=True)
        shutil.rmtree(place / "run", ignore_errors=True)  # what was written meanwhile
    faults = judge(program, (2,), "run")
    shutil.rmtree(place / "run", ignore_errors=True)
    return [f"removed folder: {fault}" for fault in faults + must_finish(place, want)]


def two_runs(folder: Path, want: dict[str, str]) -> list[str]:
    """A second training in the same folder is refused; the first one does not notice."""
    place = fresh(folder, "two")
    pause = partial(strike, "zoo.training.loop", "Trainer.save", lambda: time.sleep(0.5))
    first = programs.start(TRAIN, place, name="first", before=pause)
    wait_until(lambda: list((place / "run").glob("state/step_*")), first)
    second = programs.start(TRAIN, place, name="second")
    faults = judge(second, (2,), "another process is training") + judge(first, (0,))
    return [f"two runs: {fault}" for fault in faults + must_finish(place, want)]


def wait_until(condition: Callable[[], Any], program: Program, seconds: float = 300.0) -> bool:
    """Wait until a condition holds; return False if the program ended before."""
    deadline = time.monotonic() + seconds
    while not condition():
        if program.poll() is not None or time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


# --- signals ---------------------------------------------------------------------------------------------------------

#: state -> (module, function before which the signal arrives, True if the run is already complete)
STATES = {
    "plan": ("zoo.training.plan", "make_plan", False),
    "folder": ("zoo.training.run", "open_folder", False),
    "compile": ("zoo.training.loop", "compile_segment", False),
    "first step": ("zoo.training.loop", "Trainer.process_metrics", False),
    "evaluation": ("zoo.training.loop", "Trainer.validate", False),
    "save": ("zoo.checkpoint.run_state", "write_manifest", False),
    "best": ("zoo.checkpoint.format", "write_manifest", False),
    "finish": ("zoo.training.report", "finish", True),
    "results": ("zoo.training.report", "write_results", True),
    "exit": ("zoo.cli", "end_on_signal", True),
}
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")


def strike(module: str, name: str, action: Callable[[], Any], *, after: bool = False) -> None:
    """Call `action` once, the first time that a function is called."""
    import importlib

    owner: Any = importlib.import_module(module)
    *holder, attribute = name.split(".")
    for part in holder:
        owner = getattr(owner, part)
    original, left = getattr(owner, attribute), [1]

    def wrapped(*arguments: Any, **options: Any) -> Any:
        if left and not after:
            left.pop()
            action()
        result = original(*arguments, **options)
        if left and after:
            left.pop()
            action()
        return result

    setattr(owner, attribute, wrapped)


def send_to_self(signum: int) -> None:
    os.kill(os.getpid(), signum)


def signals(
    folder: Path, want: dict[str, str], states: tuple[str, ...] = tuple(STATES), names: tuple[str, ...] = NAMES
) -> list[str]:
    """Each signal in each state: saved and unfinished, or ended by it before the end, 0 after; then resumed."""
    faults = []
    for state in states:
        module, function, complete = STATES[state]
        for name in names:
            signum = getattr(signal, name)
            place = fresh(folder, f"{state}-{name}".replace(" ", "-"))
            send = partial(send_to_self, signum)
            program = programs.start(
                TRAIN, place, before=partial(strike, module, function, send, after=state == "exit")
            )
            # A report that takes longer than a signal allows is left for the next call, as an unfinished run.
            codes = (0, exit_code(signum)) if complete else (exit_code(signum), -signum)
            found = judge(program, codes)
            if name == names[0]:
                found += must_finish(place, want)
            faults += [f"{name} in {state}: {fault}" for fault in found]
    return faults


def double_signals(folder: Path, want: dict[str, str], gaps: tuple[float, ...] = (0.0, 0.1, 1.1, 1.5)) -> list[str]:
    """SIGINT twice: the second, after a moment, ends a save at once; the save before it is intact."""
    faults = []
    for gap in gaps:
        place = fresh(folder, f"double-{gap}")

        def twice(gap: float = gap) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            threading.Timer(gap, os.kill, (os.getpid(), signal.SIGINT)).start()

        def install(twice: Callable[[], None] = twice) -> None:
            strike("zoo.training.loop", "Trainer.process_metrics", twice)
            strike("zoo.checkpoint.run_state", "write_manifest", lambda: time.sleep(2))

        program = programs.start(TRAIN, place, before=install)
        found = judge(program, (130,)) + must_finish(place, want)
        faults += [f"SIGINT twice, {gap} s apart: {fault}" for fault in found]
    return faults


# --- streams and locales ---------------------------------------------------------------------------------------------


def streams(folder: Path, want: dict[str, str]) -> list[str]:
    """Closed, full and unread outputs, and locales without the characters, in programs of their own."""
    place = fresh(folder, "streams")
    zoo = f"{sys.executable} -m zoo.cli"
    train = f"{zoo} {shlex.join(TRAIN)}"
    ascii_only = "PYTHONUTF8=0 PYTHONCOERCECLOCALE=0"
    cases = [
        (f"{train} --workdir closed >&-", 0),
        (f"{train} --workdir errors 2>&-", 0),
        (f"{train} --workdir all <&- >&- 2>&-", 0),
        (f"{train} --workdir head | head -n 1 >/dev/null; exit ${{PIPESTATUS[0]}}", 0),
        (f"{train} --workdir full >/dev/full", 0),
        (f"{zoo} list | head -n 1 >/dev/null; exit ${{PIPESTATUS[0]}}", 0),
        (f"{zoo} list >/dev/full", 2),
        *((f"LC_ALL={locale} {ascii_only} {train} --workdir {locale}", 0) for locale in ("C", "POSIX", "de_DE")),
        (f"PYTHONIOENCODING=latin-1 {train} --workdir latin", 0),
    ]
    faults = []
    for command, code in cases:
        environment = {**os.environ, "PYTHONPATH": str(programs.ROOT)}
        done = subprocess.run(
            ["bash", "-c", command], cwd=place, env=environment, capture_output=True, check=False, timeout=600
        )
        errors = done.stderr.decode(errors="replace")
        if done.returncode != code or "Traceback" in errors or "Exception ignored" in errors:
            faults.append(f"{command}: ended with {done.returncode}: {errors[-300:]!r}")
    for run in sorted(place.iterdir()):
        found = programs.digests(run, folder)
        if different := sorted(key for key in want if found[key] != want[key] and key != "card"):
            faults.append(f"{run.name}: different {', '.join(different)}")
    return faults


# --- threads and processes -------------------------------------------------------------------------------------------


def threads(folder: Path, want: dict[str, str], count: int = 8, rounds: int = 3) -> list[str]:
    """Threads that load, save, fit and predict at once: no deadlock, and the results of one thread alone."""
    place = fresh(folder, "threads")
    program = programs.start((), place, call=partial(work_in_threads, count, rounds))
    try:
        code = program.wait(900)
    except TimeoutError as error:
        return [f"threads: {error}"]
    return [f"threads: {program.complained()[-500:]}"] if code else []


def work_in_threads(count: int, rounds: int) -> None:
    """Load, save, fit and predict in `count` threads; raise if one fails or gives another result."""
    import numpy as np

    import zoo

    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (60, 8, 8)).astype(np.uint8), np.arange(60) % 3
    settings = {"fields": {"widths": (4,), "image_size": 8}, "epochs": 2, "batch_size": 10, "quiet": True}
    first = zoo.fit("mlp", (images, labels), workdir="alone", **settings)
    want, leaves = [p.top for p in first.predict(images)], first.card.leaves
    failed: list[str] = []

    def work(number: int) -> None:
        try:
            for turn in range(rounds):
                place = f"thread{number}-{turn}"
                fitted = zoo.fit("mlp", (images, labels), workdir=place, **settings)
                zoo.save(f"{place}-copy", fitted.model, fitted.variables, fitted.card.classes, fitted.card.preprocess)
                loaded = zoo.load(f"{place}-copy")
                if loaded.card.leaves != leaves or [p.top for p in loaded.predict(images)] != want:
                    raise AssertionError("another result")
        except Exception as error:
            failed.append(f"thread {number}: {type(error).__name__} {error}")

    group = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in group:
        thread.start()
    for thread in group:
        thread.join()
    if failed:
        raise RuntimeError("; ".join(failed[:3]))


def child_processes(folder: Path, want: dict[str, str]) -> list[str]:
    """Processes started by fork before JAX is used, and by spawn after: they predict as this one does."""
    place = fresh(folder, "processes")
    faults = []
    for method in ("fork", "spawn"):
        environment = {"PYTHONPATH": os.pathsep.join([str(programs.ROOT), str(programs.ROOT / "tests")])}
        program = programs.start((), place, name=method, environment=environment, call=partial(predict_in, method))
        try:
            if program.wait(600):
                faults.append(f"{method}: {program.complained()[-500:]}")
        except TimeoutError as error:
            faults.append(f"{method}: {error}")
    return faults


def predict_in(method: str) -> None:
    """Predict in two child processes; raise unless they give this process's result."""
    import multiprocessing

    own = None if method == "fork" else predict_digit(0)
    with multiprocessing.get_context(method).Pool(2) as pool:
        found = pool.map(predict_digit, range(4))
    own = own or predict_digit(0)
    if any(answer != own for answer in found):
        raise RuntimeError(f"{found} instead of {own}")


def predict_digit(number: int) -> tuple:
    import zoo

    return zoo.load("lenet5-mnist").predict(programs.ROOT / "docs" / "digit.png")[0].top


#: name -> function of (folder, digests of an undisturbed run).
ENDINGS: dict[str, Callable[..., list[str]]] = {
    "full disk": full_disk, "full tmpfs": full_tmpfs, "read-only folder": read_only, "removed folder": removed_folder,
    "two runs": two_runs, "signals": signals, "double signals": double_signals, "streams": streams,
    "threads": threads, "child processes": child_processes,
}  # fmt: skip


#: name -> arguments of the quick form.
QUICK: dict[str, dict[str, Any]] = {"signals": {"states": ("save",), "names": ("SIGINT",)}}


def all_endings(
    folder: Path, names: tuple[str, ...] = (), quick: bool = False
) -> Iterator[tuple[str, list[str], float]]:
    """Yield (name, faults, seconds) of each kind of ending."""
    want = undisturbed(folder)
    for name in names or (QUICK if quick else ENDINGS):
        began = time.monotonic()
        arguments = QUICK.get(name, {}) if quick else {}
        yield name, ENDINGS[name](folder, want, **arguments), time.monotonic() - began
