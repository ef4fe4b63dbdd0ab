"""The commands of `zoo`, one module each, with `add_arguments(parser)` and `run(options) -> exit code or None`.

A command imports heavy libraries inside `run`, so that help is quick. This module holds what several commands share.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from zoo.addresses import is_address, join_address, name_of, parent_of, parse_address
from zoo.files import require_writable
from zoo.text import error_line

#: Exit code of a process that a signal ended, minus the number of the signal.
SIGNAL_EXIT = 128
#: Exit code of a run that was interrupted by a scheduler, with its state saved: EX_TEMPFAIL, "try again".
UNFINISHED_EXIT = 75


def start_jax() -> None:
    """Set up JAX's compilation cache in the user's cache folder. A folder set in the environment is kept."""
    import jax

    from zoo.cache import cache_folder

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = cache_folder() / "compiled"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:  # without a writable cache, every start compiles
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
    # Small functions are cached as well: compiling the dozen that run before the first step takes about a second.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def seconds(text: str) -> float:
    """Parse a number of seconds, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def count(text: str) -> int:
    """Parse a whole number, 0 or more, for argparse."""
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return value


def probability(text: str) -> float:
    """Parse a number between 0 and 1, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a probability between 0 and 1; try 0.8")
    return value


def counter(label: str) -> Callable[[int], None]:
    """Return a function that shows a count on stderr if that is a terminal, at most ten times per second."""
    import time

    shown_at = time.monotonic()

    def show(done: int) -> None:
        nonlocal shown_at
        if sys.stderr.isatty() and time.monotonic() - shown_at > 0.1:
            shown_at = time.monotonic()
            print(f"\r{label} {done:,}", end="\r", file=sys.stderr, flush=True)

    return show


def add_allow_nonfinite(parser: argparse.ArgumentParser) -> None:
    """Add the option of the commands that can use what a broken network gives; `require_finite` names them."""
    parser.add_argument("--allow-nonfinite", action="store_true", help="Accept weights that are NaN or infinite.")


def json_text(value: Any, indent: int | None = 1) -> str:
    """Return a value as valid JSON, with null in place of NaN and infinity."""
    import json

    from zoo.checkpoint.schema import to_plain_json

    return json.dumps(to_plain_json(value, "result"), indent=indent, allow_nan=False)


def amount(number: float) -> str:
    """Format a number with three significant digits and a unit prefix: 4089184256 -> "4.09 G"."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


def write_extra(
    write: Callable[[Path], Any], requested: str | None, default: str, label: str, option: str
) -> Path | None:
    """Write a file beside a printed result, in the cache folder unless an option names it.

    The cache folder may not be writable: then a line on stderr says so, and the result is not lost.

    Args:
        write: writes the file.
        requested: value of the option.
        default: name of the file in the cache folder.
        label: what the file is, for the line.
        option: the option and its value, such as "-o FILE.png", for the line.

    Returns:
        The file, or None if it could not be written.

    Raises:
        OSError: if the requested file cannot be written.
    """
    from zoo.cache import cache_folder

    if requested:
        write(Path(requested))
        return Path(requested)
    try:
        folder = cache_folder() / "sheets"
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # errors of `write` itself may be of the images that it reads
    except OSError as error:
        print(f"{label}: not written ({error_line(error)}); name a file with {option}", file=sys.stderr)
        return None
    write(folder / default)
    return folder / default


def words_without(words: Sequence[str], options: Sequence[str], fields: Sequence[str] = ()) -> list[str]:
    """Return the words of a command line without some options, and without the settings of some fields.

    Args:
        words: the words.
        options: options to leave out; each has a value, which may be part of the word, as in --seed=1 or -oFILE.
        fields: fields of recipe or model whose `--set FIELD=VALUE` to leave out.
    """
    short = tuple(option for option in options if not option.startswith("--"))
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        if word in options:
            next(rest, None)
        elif word == "--set":
            setting = next(rest, "")
            kept += [] if _field_of(setting) in fields else [word, setting]
        elif word.startswith("--set=") and _field_of(word.removeprefix("--set=")) in fields:
            continue
        elif word.partition("=")[0] not in options and not word.startswith(short):
            kept.append(word)
    return kept


def _field_of(setting: str) -> str:
    """Return the field that a setting "recipe.field=value" or "field=value" names."""
    return setting.partition("=")[0].strip().removeprefix("recipe.")


class Output(NamedTuple):
    """A file that a command writes: where on this machine, and how it and files beside it are called."""

    path: Path
    shown: Callable[[Path], str]


@contextmanager
def writing(output: str, suffix: str) -> Iterator[Output]:
    """Yield the file of an option such as `-o`, checked by `require_writable` before long work.

    For an address it is a temporary file; all files written beside it go to the store at the end of the block, the file
    itself last.

    Raises:
        ValueError: naming the path or address, if it has another suffix or cannot be written.
    """
    if not is_address(output):
        require_writable(Path(output), suffix)
        yield Output(Path(output), str)
        return
    import tempfile

    from zoo.stores import folders, objects

    address = parse_address(output)
    if Path(address).suffix.lower() != suffix:
        raise ValueError(f"{output}: the file name must end in {suffix}")
    if objects.listing(address):  # also raises for a bucket that does not exist or cannot be reached
        raise ValueError(f"{output}: is a folder; give the name of a {suffix} file")
    with tempfile.TemporaryDirectory() as temporary:
        folder, parent = Path(temporary), parent_of(address)
        yield Output(folder / name_of(address), lambda path: join_address(parent, path.name))
        names = folders.files_in(folder)
        folders.upload_files(folder, [name for name in names if name != name_of(address)], parent)
        objects.upload(folder / name_of(address), address)


def require_new_checkpoint(folder: str) -> None:
    """Check before long work that a checkpoint can be written to a folder. Nothing is created.

    Raises:
        ValueError: naming the folder or address, if it holds a checkpoint or something else, or cannot be created.
    """
    if is_address(folder):
        from zoo.stores import objects

        names = objects.listing(parse_address(folder))
        if names:
            what = "is a checkpoint already" if "card.json" in names else "exists and is not a checkpoint"
            raise ValueError(f"{folder}: {what}; choose another address")
        return
    path = Path(folder)
    if (path / "card.json").exists():
        raise ValueError(f"{folder}: is a checkpoint already; choose another folder, or remove it first")
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise ValueError(f"{folder}: exists and is not a checkpoint; choose another folder")
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    if not parent.is_dir():
        raise ValueError(f"{folder}: {parent} is a file; choose another folder")
    if not os.access(parent, os.W_OK):
        raise ValueError(f"{folder}: cannot be written (no permission for {parent})")
