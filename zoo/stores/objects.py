"""Read and write single objects of an object store by address, with retries.

Everything goes through fsspec: s3fs for s3://, gcsfs for gs://, both of the extra `cloud`. Credentials and endpoints
are those that these libraries find. Failures that may pass (5xx, timeouts, lost connections) are retried for a bounded
time.
"""

from __future__ import annotations

import logging
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from zoo.addresses import parse_address
from zoo.text import one_line

#: Environment variable: seconds for which a failing operation is retried.
TIMEOUT_VARIABLE = "ZOO_STORE_TIMEOUT"
TIMEOUT = 120.0
#: Seconds before the first and between the last attempts; they double in between.
FIRST_DELAY, LAST_DELAY = 0.2, 20.0
#: Seconds after which a line says that an operation is being retried.
QUIET_SECONDS = 5.0
#: Seconds without receiving or sending a byte after which a request fails.
CONNECT_SECONDS, READ_SECONDS = 10, 60

T = TypeVar("T")


class StoreError(ConnectionError):
    """Raised when an object store cannot be reached, refuses, or keeps failing."""


class ObjectInfo(NamedTuple):
    """An object in a listing: its size in bytes, and a text that changes with its content."""

    size: int
    version: str


@cache
def _filesystem(scheme: str) -> Any:
    """Return the file system of a scheme, which is safe to use from any thread.

    Raises:
        ImportError: if its package is not installed.
    """
    for name in ("gcsfs", "s3fs", "aiobotocore"):  # they log tracebacks of errors that are raised as well
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        if scheme == "s3":
            from s3fs import S3FileSystem

            config = {
                "retries": {"total_max_attempts": 1},
                "connect_timeout": CONNECT_SECONDS,
                "read_timeout": READ_SECONDS,
            }
            system = S3FileSystem(config_kwargs=config, use_listings_cache=False, skip_instance_cache=True)
            system.retries = 1  # `attempt` retries
            return system
        if scheme == "gs":
            from aiohttp import ClientTimeout

            timeout = ClientTimeout(sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
            return _google_filesystem()(requests_timeout=timeout, use_listings_cache=False, skip_instance_cache=True)
    except ImportError as error:
        package = {"s3": "s3fs", "gs": "gcsfs"}[scheme]
        raise ImportError(
            f"{scheme}:// addresses need {package} ({one_line(error, 100)}); type pip install 'jax-model-zoo[cloud]'"
        ) from None
    import fsspec

    return fsspec.filesystem("memory")


class RequestError(Exception):
    """An error that gcsfs would retry, which is the cause of this one, in a type that it does not know."""


#: Methods of gcsfs's file system that repeat a failed request up to six times.
_REPEATING = ("_request", "_get_file_request", "_get_file_concurrent")


def _google_filesystem() -> type:
    """Return gcsfs's file system without its retries.

    They take half a minute and more, whatever the timeout is. `attempt` retries in their place.
    """
    from gcsfs.core import GCSFileSystem

    def once(method: Any) -> Any:
        method = getattr(method, "__wrapped__", method)

        async def call(self: Any, *arguments: Any, **options: Any) -> Any:
            try:
                return await method(self, *arguments, **options)
            except (FileNotFoundError, FileExistsError, PermissionError, ValueError, RequestError):
                raise
            except Exception as error:
                if type(error) is OSError:  # of the disk, or "Forbidden", which gcsfs handles
                    raise
                raise RequestError(str(error)) from error

        return call

    methods = {name: once(getattr(GCSFileSystem, name)) for name in _REPEATING if hasattr(GCSFileSystem, name)}
    return type("GoogleFileSystem", (GCSFileSystem,), methods)


def filesystem(address: str) -> tuple[Any, str]:
    """Return (fsspec file system, path in it) of an address."""
    scheme, _, path = parse_address(address).partition("://")
    return _filesystem(scheme), f"/{path}" if scheme == "memory" else path


def timeout_seconds() -> float:
    """Return the seconds for which a failing operation is retried: those of ZOO_STORE_TIMEOUT, or TIMEOUT.

    Raises:
        ValueError: if the variable is not a number of seconds.
    """
    text = os.environ.get(TIMEOUT_VARIABLE, "")
    try:
        seconds = float(text) if text else TIMEOUT
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"{TIMEOUT_VARIABLE}={text}: is not a number of seconds; try {TIMEOUT:.0f}")
    return seconds


# --- retries ---------------------------------------------------------------------------------------------------------


def attempt(address: str, doing: str, operation: Callable[[], T]) -> T:
    """Call an operation until it succeeds; failures that may pass are retried for `timeout_seconds`.

    Args:
        address: what the operation is about, for messages.
        doing: "read", "written", …, for messages.
        operation: called without arguments.

    Raises:
        FileNotFoundError: naming the address, if there is no such object or bucket.
        FileExistsError: if the operation was to create an object that exists.
        StoreError: naming the address, for any other failure.
    """
    limit, start, delay, told = timeout_seconds(), time.monotonic(), FIRST_DELAY, False
    while True:
        try:
            return operation()
        except FileNotFoundError:
            raise FileNotFoundError(f"{address}: no such object or bucket") from None
        except (FileExistsError, ImportError, MemoryError):
            raise
        except Exception as raised:  # botocore, aiohttp and google.auth have families of their own
            error = raised.__cause__ if isinstance(raised, RequestError) and raised.__cause__ else raised
            local = isinstance(error, OSError) and error.filename is not None and os.path.exists(str(error.filename))
            if local or isinstance(error, (TypeError, AttributeError)):  # a full disk, a mistake of this program
                raise
            reason, waited = describe(error), time.monotonic() - start
            if not is_temporary(error):
                raise StoreError(f"{address}: cannot be {doing} ({reason}){advice(error)}") from None
            if waited + delay > limit:
                raise StoreError(f"{address}: cannot be {doing} ({reason}); tried for {waited:.0f} s") from None
        if not told and waited > QUIET_SECONDS:
            told = True
            print(f"{address}: cannot be {doing} yet ({reason}); trying for {limit:.0f} s", file=sys.stderr, flush=True)
        time.sleep(delay * random.uniform(0.75, 1.0))
        delay = min(2 * delay, LAST_DELAY)


def status_of(error: BaseException | None) -> int | None:
    """Return the HTTP status of an error of botocore, aiohttp or gcsfs; None if it has none."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict) and (status := response.get("ResponseMetadata", {}).get("HTTPStatusCode")):
            return int(status)
        for name in ("status", "code"):
            if str(getattr(error, name, "")).isdecimal():
                return int(getattr(error, name))
        error = error.__cause__
    return None


def is_temporary(error: BaseException) -> bool:
    """Return True for a failure that may pass: of the network or the server, not of the request."""
    status = status_of(error)
    if status is not None:
        return status >= 500 or status in (408, 409, 425, 429)  # S3 answers 409 to two conditional writes at once
    if is_about_credentials(error) or isinstance(error, (PermissionError, ValueError)):
        return False
    return not str(error).startswith("Forbidden")  # gcsfs raises an OSError without a status


def is_about_credentials(error: BaseException) -> bool:
    """Return True if the library found no credentials, or the store does not accept them."""
    name = type(error).__name__
    known = "Credential" in name or name in ("DefaultCredentialsError", "TokenRetrievalError", "ProfileNotFound")
    return known or status_of(error) in (401, 403) or isinstance(error, PermissionError)


def advice(error: BaseException) -> str:
    """Return how to give credentials, if an error is about them."""
    if not is_about_credentials(error) and not str(error).startswith("Forbidden"):
        return ""
    return "; credentials are those that s3fs or gcsfs finds, see docs/clusters.md"


def describe(error: BaseException) -> str:
    """Return the first line of an error, with the HTTP status if it has one."""
    text = one_line(error, 200) or type(error).__name__
    status = status_of(error)
    return text if status is None or str(status) in text else f"{status}: {text}"


# --- operations ------------------------------------------------------------------------------------------------------


def read(address: str, start: int | None = None, stop: int | None = None) -> bytes:
    """Read an object, or its bytes from `start` to `stop` - 1."""
    system, path = filesystem(address)
    return bytes(attempt(address, "read", lambda: system.cat_file(path, start=start, end=stop)))


def write(address: str, data: bytes) -> None:
    """Write an object, replacing one of that name. Readers see the old or the new one, never a part."""
    system, path = filesystem(address)
    attempt(address, "written", lambda: system.pipe_file(path, data))


def create(address: str, data: bytes) -> bool:
    """Write an object unless one of that name exists (If-None-Match); return True if it was written.

    A request whose answer was lost is repeated, and then finds its own object, which is told by its content.
    """
    system, path = filesystem(address)
    try:
        attempt(address, "written", lambda: system.pipe_file(path, data, mode="create"))
    except FileExistsError:
        return read(address) == data
    return True


def upload(file: Path, address: str) -> None:
    """Write an object from a file; large ones in parts."""
    system, path = filesystem(address)
    attempt(address, "written", lambda: system.put_file(str(file), path))


def download(address: str, file: Path) -> None:
    """Write an object to a file, which appears under its name once it is complete."""
    system, path = filesystem(address)
    part = file.with_name(f".{file.name[:100]}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        attempt(address, "read", lambda: system.get_file(path, str(part)))
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def copy(address: str, target: str) -> None:
    """Copy an object within its store, without moving its bytes through this machine."""
    (system, path), (_, new) = filesystem(address), filesystem(target)
    attempt(target, "written", lambda: system.cp_file(path, new))


def remove(address: str) -> None:
    """Delete an object, if it exists."""
    system, path = filesystem(address)
    with suppress(FileNotFoundError):
        attempt(address, "deleted", lambda: system.rm_file(path))


def info(address: str) -> ObjectInfo | None:
    """Return the size and version of an object; None if there is none of exactly this name."""
    system, path = filesystem(address)
    try:
        row = attempt(address, "read", lambda: system.info(path))
    except FileNotFoundError:
        return None
    return _object_info(row) if row["type"] == "file" else None


def listing(address: str) -> dict[str, ObjectInfo]:
    """Return every object below an address, by the rest of its name; {} without any.

    Raises:
        FileNotFoundError: if there is no such bucket.
    """
    system, path = filesystem(address)

    def find() -> dict[str, Any]:
        try:
            return dict(system.find(path, detail=True))
        except FileNotFoundError:
            if "/" in path.strip("/") and system.exists(path.strip("/").partition("/")[0]):
                return {}
            raise

    rows = attempt(address, "listed", find)
    prefix = path.strip("/") + "/"
    return {
        name.strip("/").removeprefix(prefix): _object_info(row)
        for name, row in rows.items()
        if name.strip("/").startswith(prefix) and row["type"] == "file"
    }


def _object_info(row: dict[str, Any]) -> ObjectInfo:
    parts = [row.get(name) for name in ("ETag", "generation", "md5Hash", "LastModified", "updated", "created")]
    texts = [part.isoformat() if isinstance(part, datetime) else str(part) for part in parts if part is not None]
    return ObjectInfo(int(row["size"] or 0), " ".join(texts))
