"""Checkpoints on the Hugging Face Hub: hf:USER/NAME, or hf:USER/NAME@REVISION for a branch, a tag or a commit.

Downloads are kept in the cache of `huggingface_hub`, where its own tools find them. Only the files that the manifest
lists are downloaded, none larger than it says; loading then checks them against their hashes, as in any folder.
HF_ENDPOINT replaces https://huggingface.co, HF_TOKEN is the token, HF_HUB_OFFLINE=1 uses the cache alone.
"""

import dataclasses
import glob
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zoo import checkpoint
from zoo.checkpoint.manifest import (
    ARRAYS,
    MANIFEST,
    MAX_JSON,
    README,
    file_sha256,
    listed_files,
    read_json,
    without_readme,
)
from zoo.checkpoint.model_card import PLACEHOLDER, model_card
from zoo.checkpoint.schema import to_plain_json
from zoo.pretrained.download import endpoint
from zoo.text import first_few, first_line, one_line

PREFIX = "hf:"
EXTRA = "jax-model-zoo[hub]"
MAX_FILES = 100_000
MAX_README = 2**20  # bytes
#: Files that a repository may have before its first checkpoint: those that the Hub and its web page create.
HARMLESS = (README, ".gitattributes", ".gitignore", "LICENSE", "LICENSE.md", "LICENSE.txt")
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_COMMIT = re.compile("[0-9a-f]{40}")


@dataclasses.dataclass(frozen=True)
class HubName:
    """A name on the Hub.

    Attributes:
        repository: "USER/NAME".
        revision: branch, tag or commit; "" for the main branch.
    """

    repository: str
    revision: str = ""

    def __str__(self) -> str:
        return f"{PREFIX}{self.repository}{'@' * bool(self.revision)}{self.revision}"

    @property
    def url(self) -> str:
        return f"{endpoint()}/{self.repository}"


def is_hub_name(spec: Any) -> bool:
    """Return True for a text that begins with "hf:"."""
    return isinstance(spec, str) and spec.startswith(PREFIX)


def parse_name(spec: str) -> HubName:
    """Parse "hf:USER/NAME" or "hf:USER/NAME@REVISION".

    Raises:
        ValueError: naming `spec`, if it is neither.
    """
    match = re.fullmatch(rf"({_PART}/{_PART})(?:@([\w.][\w./-]{{0,200}}))?", spec.removeprefix(PREFIX), re.ASCII)
    if not match or ".." in spec or "--" in match[1]:
        raise ValueError(f"{one_line(spec, 200)}: is no name on the Hub; write hf:USER/NAME or hf:USER/NAME@REVISION")
    return HubName(match[1], match[2] or "")


def suggestion(spec: str) -> str:
    """Return the name on the Hub that "USER/NAME" or the address of its page may mean; "" if it means none."""
    try:
        return str(parse_name(spec.removeprefix(f"{endpoint()}/").removesuffix("/")))
    except ValueError:
        return ""


# --- loading ---------------------------------------------------------------------------------------------------------


def fetch(spec: str, repair: bool = False) -> Path:
    """Download a checkpoint from the Hub, unless it is in the cache already, and return its folder.

    Without network the copy in the cache is used, which a line on stderr tells.

    Args:
        spec: "hf:USER/NAME" or "hf:USER/NAME@REVISION".
        repair: compare the files in the cache with their hashes, and download again those that differ.

    Raises:
        ImportError: without huggingface_hub.
        FileNotFoundError: if there is no such repository, revision or checkpoint, or no permission to see it.
        ConnectionError: if the Hub cannot be reached and the checkpoint is not in the cache.
        ValueError: if the repository holds no intact checkpoint.
    """
    name = parse_name(spec)
    hub = _import(str(name))
    if not repair and _COMMIT.fullmatch(name.revision) and (folder := _cached(hub, name)):
        return folder
    try:
        with _requests(name):
            return _download(hub, name, repair)
    except ConnectionError as error:
        if repair:
            raise
        if folder := _cached(hub, name):
            if not hub.constants.HF_HUB_OFFLINE:
                print(f"{error}; using the copy of commit {folder.name[:12]} in the cache", file=sys.stderr)
            return folder
        raise ConnectionError(f"{error}, and its files are not in the cache") from None


def _download(hub: Any, name: HubName, repair: bool) -> Path:
    """Download what the manifest lists into the cache of the Hub's library and return the folder."""
    revision = name.revision or None
    info = hub.HfApi(endpoint()).model_info(name.repository, revision=revision, files_metadata=True)
    sizes = {file.rfilename: file.size for file in info.siblings or ()}
    _require_checkpoint(name, sizes)
    folder = Path(hub.hf_hub_download(name.repository, MANIFEST, revision=revision, endpoint=endpoint())).parent
    if folder.name != info.sha:
        raise ValueError(f"{name}: was replaced while it was downloaded; repeat the command")
    listed = _listed(name, folder)
    for file, row in listed.items():
        if sizes.get(file) != row["bytes"]:
            found = "is missing" if file not in sizes else f"has {sizes[file]} bytes instead of {row['bytes']}"
            raise checkpoint.CorruptCheckpointError(f"{name}: damaged: {one_line(file, 200)} {found}")
    missing = [file for file in listed if not _is_cached(folder, file, listed, repair)]
    if not missing:
        return folder
    required, free = sum(listed[file]["bytes"] for file in missing), shutil.disk_usage(folder).free
    if required > free:
        raise ValueError(f"{name}: has {required:,} bytes, and {folder} only {free:,} free")
    patterns = [glob.escape(file) for file in missing]
    hub.snapshot_download(
        name.repository, revision=info.sha, allow_patterns=patterns, endpoint=endpoint(), force_download=repair
    )
    return folder


def _require_checkpoint(name: HubName, sizes: Mapping[str, int | None]) -> None:
    """Raise an error unless the files of a repository, with their sizes, may be a checkpoint."""
    if missing := [file for file in (checkpoint.CARD, MANIFEST) if file not in sizes]:
        raise FileNotFoundError(f"{name}: is not a checkpoint of this zoo (no {' and no '.join(missing)})")
    for file in (checkpoint.CARD, MANIFEST):
        if (sizes[file] or 0) > MAX_JSON:
            raise ValueError(f"{name}: {file} is larger than {MAX_JSON:,} bytes")


def _listed(name: HubName, folder: Path) -> dict[str, Any]:
    """Return the files of a downloaded manifest that loading reads."""
    try:
        listed = listed_files(folder)
    except ValueError as error:
        raise type(error)(f"{name}: {error}") from None
    if checkpoint.CARD not in listed:
        raise checkpoint.CorruptCheckpointError(f"{name}: damaged: {MANIFEST} does not list {checkpoint.CARD}")
    if len(listed) > MAX_FILES:
        raise ValueError(f"{name}: lists {len(listed):,} files; at most {MAX_FILES:,} are downloaded")
    return {file: row for file, row in listed.items() if file != README}


def _is_cached(folder: Path, file: str, listed: Mapping[str, Any], compare: bool = False) -> bool:
    path, row = folder / file, listed[file]
    if not path.is_file() or path.stat().st_size != row["bytes"]:
        return False
    return not compare or file_sha256(path) == row["sha256"]


def _cached(hub: Any, name: HubName) -> Path | None:
    """Return the folder of a checkpoint in the cache, or None if a file of it is missing there."""
    found = hub.try_to_load_from_cache(name.repository, MANIFEST, revision=name.revision or None)
    if not isinstance(found, str):
        return None
    folder = Path(found).parent
    listed = _listed(name, folder)
    return folder if all(_is_cached(folder, file, listed) for file in listed) else None


# --- pushing ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Upload:
    """The files and the repository of a push.

    Attributes:
        name: the name on the Hub.
        folder: the checkpoint.
        files: path in the repository -> size in bytes; README.md only if it is written.
        readme: text of the README.md, or "" to keep that of the Hub.
        manifest: the manifest without README.md, which people edit on the Hub.
        delete: arrays of the checkpoint before that this one does not have.
        private: True if the repository is, or will be, private.
        parent: commit that is replaced; "" for a new repository.
        notes: what the user should know, one line each.
        unchecked: why the repository was not looked at; "" if it was.
    """

    name: HubName
    folder: Path
    files: dict[str, int]
    readme: str
    manifest: bytes
    delete: tuple[str, ...]
    private: bool
    parent: str
    notes: tuple[str, ...]
    unchecked: str = ""


def plan_upload(
    folder: Path, spec: str, private: bool = False, overwrite_readme: bool = False, dry_run: bool = False
) -> Upload:
    """Check a checkpoint and its repository, and return what `upload` would write. Nothing is written.

    Args:
        folder: the checkpoint; every file and leaf is checked against its hash.
        spec: "hf:USER/NAME".
        private: create the repository as a private one.
        overwrite_readme: write README.md even if the one on the Hub was edited.
        dry_run: the result is only shown: without network or huggingface_hub, return what the checkpoint tells, as for
            a new repository.

    Raises:
        ImportError: without huggingface_hub, unless `dry_run`.
        ConnectionError: if the Hub cannot be reached, unless `dry_run`.
        ValueError: if the checkpoint is damaged, or the repository is public or holds something else.
    """
    name = parse_name(spec)
    if name.revision:
        raise ValueError(f"{name}: a checkpoint is pushed to the main branch; write hf:{name.repository}")
    if not dry_run:
        _import(str(name))  # raises before the files are read
    if problems := checkpoint.verify_checkpoint(folder):
        raise checkpoint.CorruptCheckpointError(f"{folder}: not pushed: {first_few(problems, 3)}")
    files = {file: row["bytes"] for file, row in listed_files(folder).items() if file != README}
    manifest = without_readme(folder)
    files[MANIFEST] = len(manifest)
    card = _read_card(folder / checkpoint.CARD)
    info: Any = None
    present: list[str] = []
    kept, unchecked = False, ""
    try:
        info, present, kept = _look_at(name, private, overwrite_readme)
    except (ConnectionError, ImportError) as error:
        if not dry_run:
            raise
        unchecked = str(error).removeprefix(f"{name}: ")
    notes = [*_what_the_card_tells(card)]
    if kept:
        notes.append(f"{README} on the Hub was edited there and is kept; --overwrite-readme replaces it")
    readme = "" if kept else _readme(folder, card, name)
    if readme:
        files[README] = len(readme.encode())
    return Upload(
        name, folder, files, readme, manifest,
        delete=tuple(file for file in present if file.startswith(f"{ARRAYS}/") and file not in files),
        private=private or bool(info and info.private), parent="" if info is None else info.sha, notes=tuple(notes),
        unchecked=unchecked,
    )  # fmt: skip


def _look_at(name: HubName, private: bool, overwrite_readme: bool) -> tuple[Any, list[str], bool]:
    """Return (information on a repository or None, its files, True if its README.md is kept).

    Raises:
        ValueError: if the repository is public or holds something else.
    """
    hub = _import(str(name))
    with _requests(name):
        try:
            info = hub.HfApi(endpoint()).model_info(name.repository)
        except hub.errors.GatedRepoError:
            raise
        except hub.errors.RepositoryNotFoundError:
            info = None
        present = [] if info is None else [file.rfilename for file in info.siblings or ()]
        others = [file for file in present if file not in HARMLESS]
        if others and MANIFEST not in present:
            listed = first_few([one_line(file, 80) for file in others], 3)
            raise ValueError(f"{name}: holds no checkpoint of this zoo, but {listed}; push to another name")
        if info is not None and private and not info.private:
            raise ValueError(f"{name}: is a public repository; make it private on {name.url}/settings, then push")
        kept = README in present and not overwrite_readme and _readme_differs(hub, name, info.sha, present)
    return info, present, kept


def upload(planned: Upload, message: str = "") -> str:
    """Create the repository if there is none, and write the files in one commit.

    Args:
        planned: the result of `plan_upload`.
        message: message of the commit; by default it names the model.

    Returns:
        The URL of the commit.

    Raises:
        ConnectionError: if the Hub cannot be reached.
        PermissionError: if the token may not write there.
    """
    name, hub = planned.name, _import(str(planned.name))
    api = hub.HfApi(endpoint())
    operations = [hub.CommitOperationDelete(file, is_folder=False) for file in planned.delete]
    contents = {README: planned.readme.encode(), MANIFEST: planned.manifest}
    for file in planned.files:
        operations.append(hub.CommitOperationAdd(file, contents.get(file) or str(planned.folder / file)))
    message = message or f"Checkpoint of {one_line(checkpoint.read_card(planned.folder).model, 60)}"
    with _requests(name, writing=True):
        if not planned.parent:
            api.create_repo(name.repository, private=planned.private or None, exist_ok=True)
        done = api.create_commit(
            name.repository, operations, commit_message=message, parent_commit=planned.parent or None
        )
    return str(done.commit_url)


def _readme(folder: Path, card: Mapping[str, Any], name: HubName) -> str:
    """Return the README.md of a checkpoint with the name of its repository in place of the placeholder."""
    file = folder / README
    text = file.read_text("utf-8", errors="replace") if file.is_file() else model_card(card)
    return text.replace(PLACEHOLDER, str(name))


def _readme_differs(hub: Any, name: HubName, revision: str, present: list[str]) -> bool:
    """Return True if the README.md of a repository is not the one that was pushed with its checkpoint."""

    def download(file: str) -> Path:
        return Path(hub.hf_hub_download(name.repository, file, revision=revision, endpoint=endpoint()))

    if MANIFEST not in present:  # the Hub's page made it, with a licence perhaps
        return True
    text = download(README).read_bytes()[:MAX_README].decode("utf-8", "replace")
    return text.replace(str(name), PLACEHOLDER) != model_card(_read_card(download(checkpoint.CARD)))


def _read_card(file: Path) -> Mapping[str, Any]:
    """Return a card as JSON with the names of the present format."""
    return to_plain_json(checkpoint.card_from_json(read_json(file), str(file)).to_json(), str(file))


def _what_the_card_tells(card: Mapping[str, Any]) -> Iterator[str]:
    """Yield lines on what a card tells about its author's machine."""
    if source := (card["data"] or {}).get("source"):
        yield f"the card names the data {one_line(source, 200)}"
    if card["command"]:
        yield f"the card holds the command {one_line(card['command'], 400)}"
    if not card["licence"]:
        yield f"the card states no licence; add one on {endpoint()}, in the front matter of {README}"


# --- errors ----------------------------------------------------------------------------------------------------------


def _import(name: str) -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError:
        raise ImportError(f"{name}: needs the package huggingface_hub: pip install '{EXTRA}'") from None
    return huggingface_hub


@contextmanager
def _requests(name: HubName, writing: bool = False) -> Iterator[None]:
    """Turn errors of the Hub's library into one line each, which says what to do; show progress on a terminal only."""
    from huggingface_hub import errors, utils

    bars = sys.stderr.isatty() or utils.are_progress_bars_disabled()
    if not bars:  # a log would hold every state of them
        utils.disable_progress_bars()
    host = endpoint().partition("://")[2]
    login = "log in with `hf auth login`, or set HF_TOKEN"
    try:
        yield
    except errors.GatedRepoError:
        raise PermissionError(f"{name}: access is restricted; ask for it on {name.url}, and {login}") from None
    except errors.RevisionNotFoundError:
        raise FileNotFoundError(f"{name}: the repository has no revision {name.revision!r}") from None
    except errors.RepositoryNotFoundError:
        if writing:
            raise PermissionError(f"{name}: no permission to write; {login} to a token with write access") from None
        raise FileNotFoundError(f"{name}: no such repository on {host}; if it is private, {login}") from None
    except errors.HfHubHTTPError as error:
        status = _status(error)
        if status in (401, 403):
            reason = f"no permission to {'write' if writing else 'read'} ({status})"
            more = " to a token with write access" if writing else ""
            raise PermissionError(f"{name}: {reason}; {login}{more}") from None
        if status == 412:
            raise ValueError(f"{name}: was changed by someone else meanwhile; repeat the command") from None
        raise ConnectionError(f"{name}: {host} answers {status or 'nothing'} ({_reason(error)})") from None
    except (ValueError, FileNotFoundError, PermissionError) as error:
        if isinstance(error, errors.LocalEntryNotFoundError):
            reason = "" if error.__cause__ is None else f" ({_reason(error.__cause__)})"
            raise ConnectionError(f"{name}: {host} cannot be reached{reason}") from None
        if "\n" not in str(error):
            raise
        raise ValueError(f"{name}: {one_line(error)}") from None
    except errors.OfflineModeIsEnabled:
        raise ConnectionError(f"{name}: HF_HUB_OFFLINE=1 forbids to ask {host}") from None
    except Exception as error:  # of the library for HTTP, whose types depend on the version
        if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
            raise  # of the disk
        raise ConnectionError(f"{name}: {host} cannot be reached ({_reason(error.__cause__ or error)})") from None
    finally:
        if not bars:
            utils.enable_progress_bars()


def _status(error: Any) -> int:
    return getattr(getattr(error, "response", None), "status_code", 0)


def _reason(error: BaseException) -> str:
    message = getattr(error, "server_message", None)
    return one_line(message, 200) if message else first_line(error)[:200]
