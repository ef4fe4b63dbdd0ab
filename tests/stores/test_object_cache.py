"""Local copies of objects: downloaded once, in a folder whose size stays below its limit."""

import os
import threading
from types import SimpleNamespace

import pytest
from helpers import assert_one_line

from zoo.stores import object_cache, objects
from zoo.stores.object_cache import ObjectCache

ROOT = "memory://cached"


@pytest.fixture
def addresses():
    names = [f"{ROOT}/{number:02d}.png" for number in range(30)]
    for number, name in enumerate(names):
        objects.write(name, bytes([number]) * 100)
    return {name: objects.info(name) for name in names}


def size_of(folder):
    return sum(file.stat().st_size for file in folder.glob("??/*"))


def age(folder):
    """Make all entries older than any session."""
    for file in folder.glob("??/*"):
        os.utime(file, (1, 1))


def test_an_object_is_downloaded_once(tmp_path, addresses, monkeypatch):
    cache = ObjectCache(tmp_path, 10_000)
    address, info = next(iter(addresses.items()))
    path = cache.get(address, info)
    assert path.read_bytes() == bytes(100)
    assert path.suffix == ".png"
    monkeypatch.setattr(objects, "download", pytest.fail)
    assert cache.get(address, info) == path
    assert ObjectCache(tmp_path, 10_000).get(address, info) == path


def test_a_changed_object_is_another_entry(tmp_path, addresses):
    cache = ObjectCache(tmp_path, 10_000)
    address, info = next(iter(addresses.items()))
    old = cache.get(address, info)
    assert cache.get(address, info._replace(version="2")) != old


def test_the_size_stays_below_the_limit_and_entries_in_use_stay(tmp_path, addresses):
    cache = ObjectCache(tmp_path, 1000)
    kept = []
    for address, info in addresses.items():
        kept.append(cache.get(address, info))
        assert size_of(tmp_path) <= 1000
    assert [path is not None for path in kept] == [True] * 10 + [False] * 20
    assert all(path.exists() for path in kept[:10])
    age(tmp_path)
    later = ObjectCache(tmp_path, 1000)
    second = list(addresses)[9]
    assert later.get(second, addresses[second]) == kept[9]  # in use from now on
    for address, info in list(addresses.items())[15:]:
        later.get(address, info)
        assert size_of(tmp_path) <= 1000
    assert kept[9].exists()
    assert not kept[0].exists()


def test_a_part_of_the_disk_stays_free(tmp_path, addresses, monkeypatch):
    """Whatever the limit: what other programs leave shrinks, and old entries make room."""
    disk = [2000]

    def usage(folder):
        return SimpleNamespace(total=disk[0], free=disk[0] - size_of(tmp_path))

    monkeypatch.setattr(object_cache.shutil, "disk_usage", usage)
    cache = ObjectCache(tmp_path, 10**9)
    kept = [cache.get(*item) for item in addresses.items()]
    assert kept.count(None) == 11 and size_of(tmp_path) == 1900
    assert not cache.downloads, "a lock of each of millions of objects"
    age(tmp_path)
    disk[0] = 1000
    assert ObjectCache(tmp_path, 10**9).get(*list(addresses.items())[-1]) is not None
    assert size_of(tmp_path) <= 900


def test_several_threads_and_caches_stay_below_the_limit(tmp_path, addresses):
    caches = [ObjectCache(tmp_path, 1000) for _ in range(3)]
    threads = [
        threading.Thread(target=lambda cache=cache: [cache.get(*item) for item in addresses.items()])
        for cache in caches
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0 < size_of(tmp_path) <= 1000


def test_a_failed_download_gives_its_room_back(tmp_path, addresses, monkeypatch):
    cache = ObjectCache(tmp_path, 100)
    items = list(addresses.items())
    with monkeypatch.context() as patch, pytest.raises(OSError):

        def fail(address, file):
            raise OSError("lost")

        patch.setattr(objects, "download", fail)
        cache.get(*items[0])
    assert cache.get(*items[1]) is not None


@pytest.mark.parametrize("count", ["", "wrong", "999999999"])
def test_a_count_that_is_wrong_or_lost_is_taken_anew(tmp_path, addresses, count):
    items = list(addresses.items())
    ObjectCache(tmp_path, 1000).get(*items[0])
    (tmp_path / "bytes").write_text(count)
    assert ObjectCache(tmp_path, 1000).get(*items[1]) is not None
    assert int((tmp_path / "bytes").read_text()) == 200


def test_an_object_larger_than_the_cache_is_named(tmp_path, addresses, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(object_cache.LIMIT_VARIABLE, "50")
    address, info = next(iter(addresses.items()))
    with pytest.raises(ValueError) as caught:
        object_cache.local_copy(address, info)
    assert_one_line(caught, address, object_cache.LIMIT_VARIABLE)


@pytest.mark.parametrize(("text", "size"), [("500", 500), ("2k", 2000), ("1.5G", 1_500_000_000), ("", 20 * 10**9)])
def test_sizes(monkeypatch, text, size):
    monkeypatch.setenv(object_cache.LIMIT_VARIABLE, text)
    assert object_cache.limit_bytes() == size


@pytest.mark.parametrize("text", ["much", "5X", "G"])
def test_a_size_that_is_none_is_refused(monkeypatch, text):
    monkeypatch.setenv(object_cache.LIMIT_VARIABLE, text)
    with pytest.raises(ValueError, match=object_cache.LIMIT_VARIABLE):
        object_cache.limit_bytes()
