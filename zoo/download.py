"""Download files: resume interrupted transfers, show progress, and verify the hash before use.

Proxies are taken from the environment (https_proxy, …).
"""

import hashlib
import http.client
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from email.message import Message
from pathlib import Path

from zoo.text import unescaped

CHUNK = 2**20
TIMEOUT = 30  # seconds without receiving a byte
ATTEMPTS = 5  # consecutive failures without receiving a byte


class HashMismatchError(ValueError):
    """The hash of a file differs from the expected one."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects and remember the sha256 that the Hugging Face Hub sends with them."""

    announced = ""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        self.announced = self.announced or _announced(headers)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _announced(headers: Message) -> str:
    """Return the sha256 in a response of the Hub (the ETag of a file in large-file storage), or "" without one."""
    tag = (headers.get("X-Linked-ETag") or headers.get("ETag") or "").removeprefix("W/").strip('"')
    return f"sha256:{tag}" if re.fullmatch(r"[0-9a-f]{64}", tag) else ""


def check_digest(file: Path, digest: str) -> str:
    """Compute the sha256 of a file and compare the file with `digest`.

    Args:
        file: the file to read.
        digest: "sha256:PREFIX", "md5:PREFIX", or "" to skip the comparison.

    Returns:
        The sha256 of the file, in hexadecimal.

    Raises:
        HashMismatchError: if the hash of the file does not begin with that of `digest`.
    """
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            sha256.update(chunk)
            md5.update(chunk)
    kind, _, expected = digest.partition(":")
    actual = {"sha256": sha256, "md5": md5}.get(kind, sha256).hexdigest()
    if not actual.startswith(expected):
        raise HashMismatchError(f"its {kind} is {actual[: max(len(expected), 8)]}… instead of {expected}")
    return sha256.hexdigest()


def download(url: str, target: Path, digest: str, name: str) -> Path:
    """Download a file and verify its hash.

    An interrupted download leaves TARGET.part, which this call or a later one resumes.

    Args:
        url: the address.
        target: the path to write; its folder is created if it does not exist.
        digest: "sha256:PREFIX", "md5:PREFIX", or "" for the hash that the server announces.
        name: name of the file in messages.

    Returns:
        The path of the downloaded file.

    Raises:
        ConnectionError: if the download fails.
        HashMismatchError: if the hash differs; the file is deleted.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    resumed = part.exists()
    try:
        announced = _transfer(url, part, name)
        digest = digest or announced
        if not digest:
            raise HashMismatchError(f"{url} announces no sha256, so the file cannot be checked")
        try:
            check_digest(part, digest)
        except HashMismatchError:
            part.unlink()
            if not resumed:
                raise
            # The partial file of an earlier call may belong to another version of the file.
            _transfer(url, part, name)
            check_digest(part, digest)
    except HashMismatchError as error:
        part.unlink(missing_ok=True)
        raise HashMismatchError(f"{name}: {url} is not the expected file ({error}); the download was deleted") from None
    except (OSError, http.client.HTTPException) as error:
        reason = error if isinstance(error, urllib.error.HTTPError) else getattr(error, "reason", None) or error
        text = " ".join(str(reason).split()) or type(error).__name__
        raise ConnectionError(f"{name}: {url} cannot be downloaded ({text})") from None
    os.replace(part, target)
    return target


def _transfer(url: str, part: Path, name: str) -> str:
    """Download `url` into `part`, resuming after its present size, and return the hash announced by the server."""
    failures, announced = 0, ""
    with _progress(name) as show:
        while True:
            have = part.stat().st_size if part.exists() else 0
            try:
                done, announced = _request(url, part, have, show)
                if done:
                    return announced
                problem: Exception = ConnectionError("the connection was cut")
            except urllib.error.HTTPError:
                raise
            except (OSError, http.client.HTTPException) as error:
                problem = error
            more = part.exists() and part.stat().st_size > have
            failures = 0 if more else failures + 1
            unreachable = isinstance(problem, urllib.error.URLError)
            if failures >= ATTEMPTS or (unreachable and not have):
                raise problem
            time.sleep(min(2**failures / 10, 5))


def _request(url: str, part: Path, have: int, show: Callable[[int, int], None]) -> tuple[bool, str]:
    """Request the bytes after the first `have`. Return (True if the file is complete, the announced hash)."""
    redirects = _Redirects()
    request = urllib.request.Request(url, headers={"User-Agent": "jax-model-zoo", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.build_opener(redirects).open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 416:
            raise
        size = (error.headers.get("Content-Range") or "").rpartition("/")[2]
        if size == str(have):  # the partial file was already complete
            return True, redirects.announced or _announced(error.headers)
        part.unlink()
        return False, ""
    with response:
        announced = redirects.announced or _announced(response.headers)
        start = have if response.status == 206 else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else 0
        with part.open("ab" if start else "wb") as out:
            while chunk := response.read(CHUNK):
                out.write(chunk)
                start += len(chunk)
                show(start, total)
    return not total or start >= total, announced


class _progress:
    """Show a progress bar on stderr if it is a terminal."""

    def __init__(self, name: str):
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(file=unescaped(sys.stderr))
        columns = (TextColumn("Downloading {task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty())
        self.task = self.bar.add_task(name, total=None)

    def __enter__(self) -> Callable[[int, int], None]:
        self.bar.start()
        return lambda done, total: self.bar.update(self.task, completed=done, total=total or None)

    def __exit__(self, *error: object) -> None:
        self.bar.stop()
