"""Memory that programs keep: in processes of their own, as it concerns all of one."""

import ctypes
import platform
import subprocess
import sys

import pytest

from zoo import freed_memory

PROGRAM = """
from zoo.freed_memory import give_back_freed_memory, keep_freed_memory
import sys
assert not {"numpy", "jax"} & set(sys.modules)
assert keep_freed_memory()

import resource
import threading
import jax.numpy as jnp

jnp.zeros(()).block_until_ready()  # JAX has its threads

def faults_of(work):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults = [faults_of(lambda: b"x" * (128 << 20)) for _ in range(3)]
assert faults[2] < faults[0] / 10, faults
give_back_freed_memory()
again = faults_of(lambda: b"x" * (128 << 20))
assert again > faults[0] / 2, (faults, again)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
def test_what_any_thread_frees_is_kept_until_it_is_given_back():
    """The same block comes back without new pages from the system."""
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)


def test_commands_that_compute_keep_it_before_anything_has_threads():
    code = "import sys, zoo.cli, zoo.commands.train, zoo.commands.evaluate; print(*{'numpy', 'jax'} & set(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed == "\n"


@pytest.mark.parametrize(
    ("asked", "plugins", "kept"),
    [("cpu", ["jax_plugins"], True), ("cuda,cpu", [], False), ("", ["libtpu"], False), ("", [], True)],
)
def test_only_where_cpus_compute(asked, plugins, kept, monkeypatch):
    told = []
    monkeypatch.setenv("JAX_PLATFORMS", asked)
    monkeypatch.setattr(freed_memory, "find_spec", lambda name: name in plugins or None)
    library = type("Library", (), {"mallopt": lambda self, *words: told.append(words) or 1})
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library())
    assert freed_memory.keep_freed_memory() is kept is bool(told)


def test_without_glibc(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not freed_memory.keep_freed_memory()
    freed_memory.give_back_freed_memory()
