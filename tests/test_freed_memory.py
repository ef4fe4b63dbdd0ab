"""Memory that programs keep: in processes of their own, as it concerns all of one."""

import ctypes
import platform
import subprocess
import sys

import pytest

from zoo import cli, freed_memory

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

def allocate():
    [b"x" * (16 << 20) for _ in range(8)]

faults = [faults_of(allocate) for _ in range(3)]
assert faults[0] - faults[2] > faults[0] / 2, faults
give_back_freed_memory()
again = faults_of(allocate)
assert again > faults[0] / 2, (faults, again)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
def test_what_any_thread_frees_is_kept_until_it_is_given_back():
    """The same block comes back without new pages from the system."""
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)


@pytest.mark.parametrize("command", [*cli.KEEPING_MEMORY, "predict"])
def test_commands_that_compute_keep_it_before_anything_has_threads(command):
    code = f"""
import sys, zoo.cli
zoo.cli.keep_freed_memory = lambda: print("kept", *{{"numpy", "jax"}} & set(sys.modules))
zoo.cli.main(["{command}", "--help"])
"""
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed.startswith("kept\n") == (command in cli.KEEPING_MEMORY)


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


@pytest.mark.parametrize(("most", "kept"), [(2**31, True), (32 * 2**20, True), (0, False)])
def test_all_or_nothing_is_set(most, kept, monkeypatch):
    """glibc before 2.35 refuses large thresholds."""
    told = {}

    def mallopt(self, name, value):
        refused = name == -3 and value > most
        if not refused:
            told[name] = value
        return int(not refused)

    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: type("Library", (), {"mallopt": mallopt})())
    assert freed_memory.keep_freed_memory() is kept
    assert set(told) == ({-1, -3, -8} if kept else set())


def test_without_glibc(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not freed_memory.keep_freed_memory()
    freed_memory.give_back_freed_memory()


@pytest.mark.parametrize(("available", "largest"), [(None, 2**30), (2**40, 2**30), (2**33, 2**29)])
def test_no_more_is_kept_than_a_share_of_the_memory_there_is(available, largest, monkeypatch):
    told = {}
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(freed_memory, "available_memory", lambda: available)
    library = type("Library", (), {"mallopt": lambda self, name, value: told.update({name: value}) or 1})
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library())
    assert freed_memory.keep_freed_memory() and told[-3] == largest


def test_memory_of_this_machine_and_container(tmp_path):
    file = tmp_path / "meminfo"
    file.write_text("MemTotal: 100 kB\nMemAvailable:    64 kB\n")
    assert freed_memory._available_to_programs(str(file)) == 65536
    assert freed_memory._available_to_programs(str(tmp_path / "none")) is None
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("2000\n")
    (tmp_path / "memory.stat").write_text("anon 900\ninactive_file 700\n")  # files that were read, kept while it lasts
    assert freed_memory._left_in_container(str(tmp_path)) == 3700
    (tmp_path / "memory.max").write_text("max\n")
    assert freed_memory._left_in_container(str(tmp_path)) is None
