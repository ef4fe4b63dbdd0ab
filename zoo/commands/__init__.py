"""The commands of `zoo`, a file each: `add_arguments(parser)` and `run(options) -> exit code or None`.

A file imports what it needs when it runs, so that help is quick. Here is what several of them use.
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

#: What a process that a signal ended exits with, less the signal's number.
SIGNAL_EXIT = 128


def one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror.lower()}"
    return " ".join(str(error).split()) or type(error).__name__


def start_jax() -> None:
    """What the command line sets for itself: the compilation cache in the user's cache folder."""
    import jax

    from zoo.cache import cache_folder

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = cache_folder() / "compiled"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:  # a home that cannot be written to: compile every time
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
    # The small functions too: a dozen of them run before the first step, a second's compiling in all.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return value


def counter(what: str) -> Callable[[int], None]:
    """A count on stderr where that is a terminal, at most ten times a second."""
    import time

    last = [time.monotonic()]

    def show(done: int) -> None:
        if sys.stderr.isatty() and time.monotonic() - last[0] > 0.1:
            last[0] = time.monotonic()
            print(f"\r{what} {done:,}", end="\r", file=sys.stderr, flush=True)

    return show


def amount(number: float) -> str:
    """4089184256 -> "4.09 G"."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


def require_writable(path: Path, ending: str) -> None:
    """ValueError unless a file of this name can be written; asked before long work."""
    if path.suffix.lower() != ending:
        raise ValueError(f"{path}: the name should end in {ending}")
    if path.is_dir():
        raise ValueError(f"{path}: is a folder")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}")
    existed = path.exists()
    try:
        path.open("ab").close()
    except OSError as error:
        raise ValueError(f"{path}: cannot be written ({error.strerror})") from None
    if not existed:
        path.unlink()
