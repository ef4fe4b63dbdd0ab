"""Single objects and folders of objects, in fsspec's memory file system."""

import asyncio
import sys
from types import SimpleNamespace
from typing import ClassVar

import pytest
from helpers import assert_one_line, killed_after

from zoo import addresses
from zoo.stores import folders, objects
from zoo.stores.objects import StoreError

ROOT = "memory://objects"


class HTTPError(Exception):
    def __init__(self, status):
        super().__init__("said the server")
        self.status = status


@pytest.fixture(autouse=True)
def empty_store(monkeypatch):
    for name in objects.listing(ROOT):
        objects.remove(f"{ROOT}/{name}")
    monkeypatch.setattr(objects, "FIRST_DELAY", 0.001)


@pytest.mark.parametrize(
    ("spec", "address"),
    [
        ("gs://b/run/", "gs://b/run"),
        ("gs:/b/run", "gs://b/run"),
        ("gcs://b//run", "gs://b/run"),
        ("S3://b/x y", "s3://b/x y"),
    ],
)
def test_spellings_of_addresses(spec, address):
    assert addresses.is_address(spec)
    assert addresses.parse_address(spec) == address


@pytest.mark.parametrize("spec", ["https://b/run", "az://b/run", "gs://", "s3:///", "s3://b/../c", "file:///x"])
def test_addresses_that_are_refused(spec):
    assert addresses.is_address(spec)
    with pytest.raises(ValueError) as caught:
        addresses.parse_address(spec)
    assert_one_line(caught, spec)


@pytest.mark.parametrize(
    "spec", ["runs/x", "/gs/x", "C:/x", "tfds:mnist", "hf:/folder", "tfds:x/y", "torchvision:resnet50", "gs:"]
)
def test_paths_and_names_are_no_addresses(spec):
    assert not addresses.is_address(spec)
    addresses.require_local(spec)


def test_an_object():
    objects.write(f"{ROOT}/a/b", b"0123456789")
    assert objects.read(f"{ROOT}/a/b", 2, 5) == b"234"
    assert objects.info(f"{ROOT}/a/b").size == 10
    assert objects.info(f"{ROOT}/a") is None
    assert set(objects.listing(ROOT)) == {"a/b"}
    objects.remove(f"{ROOT}/a/b")
    objects.remove(f"{ROOT}/a/b")
    with pytest.raises(FileNotFoundError) as caught:
        objects.read(f"{ROOT}/a/b")
    assert_one_line(caught, f"{ROOT}/a/b")


def test_an_object_is_created_once():
    assert objects.create(f"{ROOT}/lock", b"first")
    assert objects.create(f"{ROOT}/lock", b"first")  # the answer to the first request was lost
    assert not objects.create(f"{ROOT}/lock", b"second")
    assert objects.read(f"{ROOT}/lock") == b"first"


@pytest.mark.parametrize(
    "error", [HTTPError(503), HTTPError(500), HTTPError(429), HTTPError(409), TimeoutError(), ConnectionResetError()]
)
def test_failures_that_pass_are_retried(error):
    errors = [error] * 3

    def operation():
        if errors:
            raise errors.pop()
        return "done"

    assert objects.attempt(ROOT, "read", operation) == "done"


@pytest.mark.parametrize(("error", "text"), [(HTTPError(503), "503"), (TimeoutError("slow"), "slow")])
def test_failures_that_stay_end_in_one_line(monkeypatch, error, text):
    monkeypatch.setenv(objects.TIMEOUT_VARIABLE, "0.02")

    def operation():
        raise error

    with pytest.raises(StoreError) as caught:
        objects.attempt(ROOT, "written", operation)
    assert_one_line(caught, ROOT, "written", text)


@pytest.mark.parametrize("error", [HTTPError(403), HTTPError(400), PermissionError("no"), OSError("Forbidden: b/x")])
def test_refusals_are_not_retried(error):
    calls = []

    def operation():
        calls.append(1)
        raise error

    with pytest.raises(StoreError):
        objects.attempt(ROOT, "read", operation)
    assert len(calls) == 1


def test_a_time_that_is_no_number_is_refused(monkeypatch):
    monkeypatch.setenv(objects.TIMEOUT_VARIABLE, "long")
    with pytest.raises(ValueError, match=objects.TIMEOUT_VARIABLE):
        objects.read(ROOT)


@pytest.mark.parametrize(("scheme", "module"), [("s3", "s3fs"), ("gs", "gcsfs")])
def test_a_missing_package_is_named(monkeypatch, scheme, module):
    import sys

    monkeypatch.setitem(sys.modules, module, None)
    objects._filesystem.cache_clear()
    with pytest.raises(ImportError) as caught:
        objects.read(f"{scheme}://b/x")
    objects._filesystem.cache_clear()
    assert_one_line(caught, module, "jax-model-zoo[cloud]")


def version(folder, number):
    folder.mkdir()
    for name in ("a", "b", "manifest"):
        (folder / name).write_text(f"{name}{number}")
    (folder / f"only{number}").write_text("x")
    return folder


def content(address):
    """Return the version of the complete folder that a reader finds."""
    for base in (address, folders.staging_of(address)):
        found = {name: objects.read(f"{base}/{name}").decode() for name in objects.listing(base)}
        if "manifest" in found:
            number = found["manifest"][-1]
            names = {name: f"{name}{number}" for name in ("a", "b", "manifest")}
            assert found == {**names, f"only{number}": "x"}
            return number
    raise AssertionError("no complete folder")


def test_a_folder_killed_at_any_moment_of_its_replacement_is_complete(tmp_path, monkeypatch):
    old, new, address = version(tmp_path / "1", 1), version(tmp_path / "2", 2), f"{ROOT}/best"
    seen = set()
    for count in range(0, 100, 3):
        folders.replace_folder(old, address, "manifest")
        assert content(address) == "1"
        with killed_after(monkeypatch, count) as left:
            folders.replace_folder(new, address, "manifest")
        seen.add(content(address))
        folders.finish_replacement(address, "manifest")
        assert content(address) in ("1", "2")
        assert not objects.listing(folders.staging_of(address))
        if left[0] >= 0:
            break
    assert seen == {"1", "2"}
    assert count > 10


def test_gcsfs_does_not_retry_by_itself(monkeypatch):
    """Its retries take half a minute, whatever the timeout is; what it would retry goes to `attempt` at once."""

    class Core:
        faults: ClassVar[list[Exception]] = []

        async def _request(self):
            raise self.faults.pop()

    async def retrying(self):
        raise AssertionError("retried")

    retrying.__wrapped__ = Core._request
    Core._request = retrying
    monkeypatch.setitem(sys.modules, "gcsfs.core", SimpleNamespace(GCSFileSystem=Core))
    monkeypatch.setenv(objects.TIMEOUT_VARIABLE, "5")
    system = objects._google_filesystem()()
    Core.faults = [HTTPError(403), HTTPError(503), ConnectionResetError("lost")]
    with pytest.raises(StoreError, match="403"):
        objects.attempt(f"{ROOT}/x", "read", lambda: asyncio.run(system._request()))
    assert not Core.faults
    for error in (FileNotFoundError("x"), FileExistsError("x"), ValueError("Bad Request"), OSError("Forbidden: x")):
        Core.faults = [error]
        with pytest.raises(type(error), match=str(error)):
            asyncio.run(system._request())
