"""Files from the network: with progress, gone on with where a connection was cut, and checked before they are used.

Only the standard library; proxies are those of the environment (https_proxy, …). Two variables say where from:
HF_ENDPOINT instead of https://huggingface.co, as for its own tools, and ZOO_WEIGHTS_URL, a folder that holds all other
files under their names, instead of their own addresses.
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

from zoo.pretrained.registry import Weights

HUB = "https://huggingface.co"
CHUNK = 2**20
TIMEOUT = 30  # seconds without a byte
ATTEMPTS = 5  # in a row without a byte more


class HashMismatchError(ValueError):
    """What was fetched is not the file that was asked for."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, keeping the sha256 that the Hugging Face hub announces beside them."""

    announced = ""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        self.announced = self.announced or _announced(headers)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _announced(headers: Message) -> str:
    """The sha256 in a response of the hub: the ETag of a file in large-file storage; "" where there is none."""
    tag = (headers.get("X-Linked-ETag") or headers.get("ETag") or "").removeprefix("W/").strip('"')
    return f"sha256:{tag}" if re.fullmatch(r"[0-9a-f]{64}", tag) else ""


def address(weights: Weights) -> str:
    """Where the file of a set is fetched from."""
    if weights.file.startswith("https://"):
        mirror = os.environ.get("ZOO_WEIGHTS_URL")
        return f"{mirror.rstrip('/')}/{weights.file.rpartition('/')[2]}" if mirror else weights.file
    repository, _, file = weights.file.rpartition("/")
    return f"{(os.environ.get('HF_ENDPOINT') or HUB).rstrip('/')}/{repository}/resolve/main/{file}"


def check_digest(file: Path, digest: str) -> str:
    """The sha256 of a file, after it was compared with `digest` ("sha256:PREFIX", "md5:…", or "" for no comparison).

    Raises HashMismatchError.
    """
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            sha256.update(chunk)
            md5.update(chunk)
    kind, _, wanted = digest.partition(":")
    found = {"sha256": sha256, "md5": md5}.get(kind, sha256).hexdigest()
    if not found.startswith(wanted):
        raise HashMismatchError(f"its {kind} is {found[: max(len(wanted), 8)]}… instead of {wanted}")
    return sha256.hexdigest()


def fetch(weights: Weights, folder: Path) -> Path:
    """The file of a set, downloaded into `folder` and checked.

    What a cut connection left (NAME.part) is gone on with, by this call or a later one. Raises ConnectionError, naming
    the file to bring by hand, if it cannot be fetched, and HashMismatchError, leaving nothing, if it is another file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    url = address(weights)
    target = folder / f"{weights.name.replace(':', '-')}-{url.rpartition('/')[2]}"
    part = target.with_name(f"{target.name}.part")
    old = part.exists()
    try:
        announced = _transfer(url, part, weights.name)
        digest = weights.digest or announced
        if not digest:
            raise HashMismatchError(f"{url} announces no sha256, so the file cannot be checked")
        try:
            check_digest(part, digest)
        except HashMismatchError:
            part.unlink()
            if not old:
                raise
            # What an earlier call had left may have been of another version.
            _transfer(url, part, weights.name)
            check_digest(part, digest)
    except HashMismatchError as error:
        part.unlink(missing_ok=True)
        raise HashMismatchError(
            f"{weights.name}: {url} is not the file it should be ({error}); it was thrown away"
        ) from None
    except (OSError, http.client.HTTPException) as error:
        reason = error if isinstance(error, urllib.error.HTTPError) else getattr(error, "reason", None) or error
        raise ConnectionError(
            f"{weights.name}: {url} cannot be fetched ({' '.join(str(reason).split()) or type(error).__name__}); bring "
            f"the file by hand and run: zoo import {url.rpartition('/')[2]} --as {weights.name}"
        ) from None
    os.replace(part, target)
    return target


def _transfer(url: str, part: Path, name: str) -> str:
    """All of `url` in `part`, going on with what is there; the hash announced on the way."""
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
    """One request for what is missing: (whether that was all, the hash announced)."""
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
        if size == str(have):  # all of it was there already
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
    """A bar on stderr where that is a terminal."""

    def __init__(self, name: str):
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (TextColumn("fetching {task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty())
        self.task = self.bar.add_task(name, total=None)

    def __enter__(self) -> Callable[[int, int], None]:
        self.bar.start()
        return lambda done, total: self.bar.update(self.task, completed=done, total=total or None)

    def __exit__(self, *error: object) -> None:
        self.bar.stop()
