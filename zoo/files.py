"""Durable file operations: atomic writes, folder replacement and locks."""

import errno
import lzma
import os
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from zoo.addresses import require_local
from zoo.text import escape

#: What reading a member of a damaged zip archive raises: zlib and lzma have error types of their own, and what the
#: module does not support is a NotImplementedError, an encrypted member a RuntimeError.
ZIP_ERRORS = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, struct.error, NotImplementedError, RuntimeError, OSError,
)  # fmt: skip

MAX_TEXT = 2**31  # bytes of a text file; the table of ImageNet-21k has half of that


@contextmanager
def atomic_writer(file: Path, *, durable: bool = True, unique: bool = False) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces `file` in one rename, so that a reader or a crash never sees half of it.

    If the block raises, the temporary file is deleted and `file` stays as it was.

    Args:
        file: the file to replace.
        durable: flush content and rename to disk, to survive a power failure.
        unique: use a temporary name of this process alone, for files that several processes may write at once.

    Yields:
        The temporary file, open for writing bytes.

    Raises:
        OSError: naming `file`, if the disk is full or a limit is reached.
    """
    require_local(file)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp" if unique else f".{file.name}.tmp")
    try:
        with open(temporary, "wb") as stream:
            yield stream
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        temporary.replace(file)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        # A failed write names no file, and a failed opening the temporary one.
        if isinstance(error, OSError) and error.errno is not None and error.filename in (None, str(temporary)):
            raise OSError(error.errno, os.strerror(error.errno), str(file)) from None
        raise
    if durable:
        sync_folder(file.parent)


def require_regular(file: Path) -> int:
    """Return the size of a regular file, in bytes.

    Pipes, sockets, devices and links to them are refused before they are opened: reading one may never end.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, if it is anything else.
    """
    require_local(file)
    try:
        status = file.stat()
    except ValueError:  # a NUL character
        raise FileNotFoundError(f"{escape(str(file))}: no such file") from None
    if not stat.S_ISREG(status.st_mode):
        what = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, a socket or a device"
        raise ValueError(f"{escape(str(file))}: is {what}, not a regular file")
    return status.st_size


def read_bounded(file: Path, limit: int) -> bytes:
    """Read a whole regular file of at most `limit` bytes.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, if it is not a regular file or is larger.
    """
    require_regular(file)
    with open(file, "rb") as stream:
        raw = stream.read(limit + 1)
    if len(raw) > limit:
        raise ValueError(f"{escape(str(file))}: is larger than {limit:,} bytes")
    return raw


def read_text(file: Path, limit: int = MAX_TEXT, encoding: str = "utf-8") -> str:
    """Read a regular text file of at most `limit` bytes.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, if it is not a regular file, is larger, or is not text in this encoding.
    """
    try:
        return read_bounded(file, limit).decode(encoding)
    except UnicodeDecodeError:
        name = encoding.upper().removesuffix("-SIG")
        raise ValueError(f"{escape(str(file))}: is not text in {name}; save it as {name}") from None


def write_atomically(file: Path, text: str) -> None:
    """Replace the content of `file` with `text` (UTF-8) in one rename, and flush it to disk."""
    with atomic_writer(file) as stream:
        stream.write(text.encode("utf-8"))


def require_writable(path: Path, suffix: str = "") -> None:
    """Check before long work that a file can be written. The file is neither created nor changed.

    Raises:
        ValueError: naming the path, if it has another suffix or cannot be written.
    """
    require_local(path)
    if suffix and path.suffix.lower() != suffix:
        raise ValueError(f"{path}: the file name must end in {suffix}")
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; give the name of a {suffix or 'new'} file")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: no such folder: {path.parent}")
    existed = path.exists()
    try:
        path.open("ab").close()
    except OSError as error:
        raise ValueError(f"{path}: cannot be written ({error.strerror})") from None
    if not existed:
        path.unlink()


def sync_folder(folder: Path) -> None:
    """Flush the entries of `folder` to disk, so that renames in it survive a power failure. Does nothing on Windows."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def sync_file(file: Path) -> None:
    """Flush the content of `file` to disk."""
    descriptor = os.open(file, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def remove_folder(path: Path) -> None:
    """Delete a folder and everything in it, if it exists. Of a symbolic link only the link is deleted."""
    if path.is_symlink():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)


@contextmanager
def writing_folder(temporary: Path, path: Path) -> Iterator[None]:
    """Delete `temporary`, the next content of `path`, if writing it fails; the error names `path`.

    A failed write does not name a file by itself. What was written of it would keep a full disk full.
    """
    try:
        yield
    except Exception as error:
        with suppress(OSError):
            remove_folder(temporary)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from None
        raise


def backup_of(path: Path) -> Path:
    """Return the name under which `replace_folder` keeps the old folder while it puts the new one in place."""
    return path.with_name(f".{path.name}.old")


def replace_folder(new: Path, path: Path) -> None:
    """Rename folder `new` to `path`, replacing a folder of that name.

    A process killed between the two renames leaves the old folder under `backup_of(path)`; `finish_replacement` puts it
    back.
    """
    old = backup_of(path)
    remove_folder(old)
    if path.exists():
        path.rename(old)
    new.rename(path)
    sync_folder(path.parent)
    remove_folder(old)


def follow_link(path: Path) -> Path:
    """Return where a symbolic link points to, or `path` itself. A folder is replaced there, on its own file system.

    Raises:
        OSError: naming the link, if it leads back to itself.
    """
    if not path.is_symlink():
        return path
    try:
        return path.resolve()
    except RuntimeError:  # Python before 3.13
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from None


def finish_replacement(path: Path) -> None:
    """Restore the old folder if a process died between the two renames of `replace_folder`. Only a writer calls it."""
    old = backup_of(path)
    if old.exists() and not path.exists():
        old.rename(path)


@contextmanager
def locked(file: Path, message: str) -> Iterator[None]:
    """Hold an exclusive lock on `file`.

    Raises:
        ValueError: with `message`, if another process holds the lock.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(message) from None
    try:
        yield
    finally:
        lock.release()
