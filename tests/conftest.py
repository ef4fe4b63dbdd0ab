"""Set up eight simulated CPU devices, a compilation cache for the session, and an empty home folder."""

import atexit
import os
import shutil
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ["ZOO_REPORT"] = "0"  # no page after each of the many runs; tests/analysis/test_report.py writes some
os.environ["ZOO_MESH"] = "data=1"  # the default of every test: the first device
if "ZOO_TEST_CACHE" not in os.environ:  # created by the first process, shared by workers and children
    os.environ["ZOO_TEST_CACHE"] = tempfile.mkdtemp(prefix="zoo-tests-")
    atexit.register(shutil.rmtree, os.environ["ZOO_TEST_CACHE"], ignore_errors=True)
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["ZOO_TEST_CACHE"]
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # more would compete with other workers
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # most of the time is compilation; this saves a fifth

import pytest

# The slowest files, which run first so that no worker is left with one of them at the end.
LONGEST = (
    "test_contract.py", "test_ops.py", "test_finetune.py", "test_loop.py", "test_cpu_kernels.py", "test_probe.py",
    "test_readme.py", "test_mesh.py", "test_inception.py", "test_step.py", "test_photo.py", "test_golden.py",
    "test_progressive.py", "test_folding.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Keep the tests of a file on one worker, since they share runs, traced models and compiled functions."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory, monkeypatch):
    home = tmp_path_factory.getbasetemp() / "home"
    home.mkdir(exist_ok=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / ".cache"))
