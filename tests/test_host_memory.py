"""Host memory. The setting affects a whole process, so it is tested in processes of its own."""

import ctypes
import platform
import subprocess
import sys

import pytest

from zoo import cli, host_memory

PROGRAM = """
from zoo.host_memory import release_freed_memory, retain_freed_memory
import sys
assert not {"numpy", "jax"} & set(sys.modules)
assert retain_freed_memory()

import resource
import threading
import jax.numpy as jnp

jnp.zeros(()).block_until_ready()  # starts JAX's threads

def page_faults(work):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def allocate():
    [b"x" * (16 << 20) for _ in range(8)]

faults = [page_faults(allocate) for _ in range(3)]
assert faults[0] - faults[2] > faults[0] / 2, faults
release_freed_memory()
after_release = page_faults(allocate)
assert after_release > faults[0] / 2, (faults, after_release)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
def test_memory_freed_by_any_thread_is_retained_until_it_is_released():
    """A retained block is reused without page faults."""
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)


@pytest.mark.parametrize("command", [*cli.KEEPING_MEMORY, "predict"])
def test_compute_commands_retain_memory_before_any_thread_exists(command):
    code = f"""
import sys, zoo.cli
zoo.cli.retain_freed_memory = lambda: print("retained", *{{"numpy", "jax"}} & set(sys.modules))
zoo.cli.main(["{command}", "--help"])
"""
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed.startswith("retained\n") == (command in cli.KEEPING_MEMORY)


@pytest.fixture
def options(monkeypatch):
    """The options set with mallopt, all of which are accepted."""
    accepted = {}
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    library = type("Library", (), {"mallopt": lambda self, name, value: accepted.update({name: value}) or 1})
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library())
    return accepted


@pytest.mark.parametrize(
    ("platforms", "plugins", "retained"),
    [("cpu", ["jax_plugins"], True), ("cpu,cuda", [], True), ("cuda,cpu", [], False), ("tpu", [], False),
     ("", ["libtpu"], False), ("", ["jax_plugins"], False), ("", [], True)],
)  # fmt: skip
def test_memory_is_retained_only_if_steps_run_on_a_cpu(platforms, plugins, retained, options, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr(host_memory, "find_spec", lambda name: name in plugins or None)
    assert host_memory.retain_freed_memory() is retained is bool(options)


@pytest.mark.parametrize(("limit", "retained"), [(2**31, True), (32 * 2**20, True), (32 * 2**20 - 1, False)])
def test_no_option_is_set_if_the_first_is_refused(limit, retained, monkeypatch):
    """glibc before 2.35 refuses thresholds above 32 MiB."""
    accepted = {}

    def mallopt(self, name, value):
        refused = name == -3 and value > limit
        if not refused:
            accepted[name] = value
        return int(not refused)

    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(host_memory, "available_memory", lambda: None)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: type("Library", (), {"mallopt": mallopt})())
    assert host_memory.retain_freed_memory() is retained
    # Values from malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX; -1 disables trimming.
    assert accepted == ({-1: -1, -3: min(2**30, limit), -8: 1} if retained else {})


def test_other_c_libraries(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not host_memory.retain_freed_memory()
    host_memory.release_freed_memory()


@pytest.mark.parametrize(
    ("available", "largest"), [(None, 2**30), (2**40, 2**30), (2**34, 2**30), (2**33, 2**29), (2**30, 2**26)]
)
def test_retained_blocks_are_at_most_a_sixteenth_of_the_available_memory(available, largest, options, monkeypatch):
    monkeypatch.setattr(host_memory, "available_memory", lambda: available)
    assert host_memory.retain_freed_memory() and options[-3] == largest


def test_available_memory_of_machine_and_container(tmp_path, monkeypatch):
    file = tmp_path / "meminfo"
    file.write_text("MemTotal: 100 kB\nMemAvailable:    64 kB\n")
    assert host_memory._available_on_machine(str(file)) == 65536
    assert host_memory._available_on_machine(str(tmp_path / "none")) is None
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("2000\n")
    (tmp_path / "memory.stat").write_text("anon 900\ninactive_file 700\n")  # the file cache can be reclaimed
    assert host_memory._available_in_container(str(tmp_path)) == 3700
    (tmp_path / "memory.max").write_text("max\n")
    assert host_memory._available_in_container(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("machine", "container", "available"), [(9, 5, 5), (5, 9, 5), (9, None, 9), (None, 9, 9), (None, None, None)]
)
def test_the_smaller_of_machine_and_container_counts(machine, container, available, monkeypatch):
    monkeypatch.setattr(host_memory, "_available_on_machine", lambda: machine)
    monkeypatch.setattr(host_memory, "_available_in_container", lambda: container)
    assert host_memory.available_memory() == available
