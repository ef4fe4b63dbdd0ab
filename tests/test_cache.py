import sys
from pathlib import Path

import numpy as np
import pytest

from zoo.cache import cache_folder, cached


@pytest.fixture
def builds():
    """A function that counts its calls and builds arrays of them."""

    def build():
        build.calls += 1
        return {"x": np.arange(5) + build.calls, "y": np.array(["a", "b"])}

    build.calls = 0
    return build


def test_the_folder_follows_xdg_cache_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "jax-model-zoo"


@pytest.mark.skipif(sys.platform != "linux", reason="the folder of Linux")
@pytest.mark.parametrize("value", [None, ""])
def test_the_folder_without_xdg_cache_home(value, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME") if value is None else monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert cache_folder() == Path(tmp_path) / ".cache" / "jax-model-zoo"


def test_arrays_are_built_once_per_key(builds, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = cached("one", builds)
    again = cached("one", builds)
    assert builds.calls == 1 and first.keys() == again.keys() == {"x", "y"}
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
        assert first[name].dtype == again[name].dtype
    assert cached("two", builds)["x"][0] == 2
    assert sorted(path.name for path in (tmp_path / "jax-model-zoo" / "data").iterdir()) == ["one.npz", "two.npz"]


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: b"text", lambda data: data[:-30],
                                    lambda data: data[:100] + bytes([data[100] ^ 1]) + data[101:]])  # fmt: skip
def test_a_damaged_file_is_rebuilt(damage, builds, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cached("one", builds)
    path = tmp_path / "jax-model-zoo" / "data" / "one.npz"
    path.write_bytes(damage(path.read_bytes()))
    assert cached("one", builds)["x"][0] == 2 and cached("one", builds)["x"][0] == 2


def test_pickled_arrays_are_not_loaded(builds, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tmp_path / "jax-model-zoo" / "data" / "one.npz"
    path.parent.mkdir(parents=True)
    np.savez(path, x=np.array([{}], object))
    assert cached("one", builds)["x"].tolist() == [1, 2, 3, 4, 5]


def test_what_is_not_cacheable_is_built_again(builds, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked_after = []
    cached("one", builds, cacheable=lambda: asked_after.append(builds.calls))
    assert asked_after == [1] and not (tmp_path / "jax-model-zoo").exists()
    assert cached("one", builds)["x"][0] == 2


def test_without_a_writable_folder_arrays_are_built_each_time(builds, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cached("one", builds)["x"][0] == 1 and cached("one", builds)["x"][0] == 2
