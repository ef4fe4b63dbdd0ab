"""A watch over the other processes of a group: one that fails, disappears or hangs ends all, with its name first.

Each process writes a sign of life into the key-value store of JAX's coordinator and reads those of the others, in a
thread, so that neither collectives that wait for ever nor long compilations matter. A process that fails, or leaves
after a signal, tells the others, which then end as well. Alone, every function here does nothing.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import jax

BEAT_SECONDS = 1.0
#: Seconds without a sign of life after which a process counts as lost; JAX itself ends all after HEARTBEAT_SECONDS.
LOST_SECONDS = 25.0
#: Seconds in which process 0, without which JAX ends the others, waits for them to end by themselves.
FAREWELL_SECONDS = 8.0
#: Seconds between two looks at the others after which this process was stopped, which says nothing about them.
PAUSE_SECONDS = 10.0
#: Seconds in which no process advances by a step or a batch after which those behind are named; 0 for no limit.
HANG_SECONDS = 1800.0
#: Exit code of a process that ends because another was lost or hangs.
LOST_EXIT = 70

_ALIVE, _END, _HOST = "zoo/alive/", "zoo/end", "zoo/host/"


def coordinator() -> Any:
    """Return this process's client of JAX's coordinator; None for a single process."""
    from jax._src import distributed

    return distributed.global_state.client


class Watch:
    """The state of this process that the others see, and the thread that watches them."""

    def __init__(self, client: Any, index: int, count: int, leave: Callable[[int, str], NoReturn]):
        self.client, self.index, self.count, self.leave = client, index, count, leave
        self.hang_seconds = HANG_SECONDS
        self.beats, self.steps, self.doing, self.exempt = 0, 0, "starting", 1
        self.last_beats: dict[int, tuple[Any, float]] = {}
        self.advanced: tuple[Any, float] = (None, time.monotonic())
        self.hosts: dict[int, str] = {}
        self.ended = threading.Event()
        self.beat_time = self.answer_time = self.guard_time = time.monotonic()

    def start(self) -> None:
        """Begin to watch."""
        for target in (self.run, self.guard):
            threading.Thread(target=target, name="watch", daemon=True).start()

    def run(self) -> None:
        while not self.ended.wait(BEAT_SECONDS):
            self.beat()

    def guard(self) -> None:
        """End this process when the coordinator does not answer: a call may wait for it without end."""
        while not self.ended.wait(BEAT_SECONDS):
            self.check_answers(time.monotonic())

    def check_answers(self, now: float) -> None:
        """End this process if the last answer of the coordinator is too old, unless this process was itself stopped."""
        paused = now - self.guard_time > PAUSE_SECONDS
        self.answer_time += (now - self.guard_time) * paused
        self.guard_time = now
        if now - self.answer_time > LOST_SECONDS and self.index and not self.ended.is_set():
            self.leave(LOST_EXIT, f"{self.names([0])} lost: no answer for {LOST_SECONDS:g} s")

    def beat(self) -> None:
        """Write a sign of life, and end this process if another has ended, is lost or hangs."""
        now = time.monotonic()
        if (pause := now - self.beat_time) > PAUSE_SECONDS:  # this process, or its whole machine, was stopped
            self.last_beats = {index: (beat, since + pause) for index, (beat, since) in self.last_beats.items()}
            self.advanced = self.advanced[0], self.advanced[1] + pause
        self.beat_time = now
        self.beats += 1
        own = json.dumps([self.beats, self.steps, self.doing, self.exempt])
        try:
            self.client.key_value_set(f"{_ALIVE}{self.index}", own, allow_overwrite=True)
            told = dict(self.client.key_value_dir_get("zoo/"))
        except Exception:  # the coordinator, which process 0 holds, does not answer
            return
        self.answer_time = now = time.monotonic()
        if self.ended.is_set():
            return
        if _END in told:
            end = json.loads(told[_END])
            if end["process"] != self.index:
                self.say_done()
                self.wait_for_farewells()
                self.leave(end["code"], end["message"])
            return
        states = {int(key.rpartition("/")[2]): json.loads(value) for key, value in told.items() if _ALIVE in key}
        if found := self.lost(states, now) or self.hanging(states, now):
            self.tell(LOST_EXIT, found)
            self.wait_for_farewells()
            self.leave(LOST_EXIT, found)

    def lost(self, states: dict[int, list], now: float) -> str:
        """Return a line that names processes without a sign of life for LOST_SECONDS; "" if there are none."""
        for index, state in states.items():
            if self.last_beats.get(index, (None, 0.0))[0] != state[0]:
                self.last_beats[index] = state[0], now
        gone = [i for i, (beat, since) in self.last_beats.items() if beat != "done" and now - since > LOST_SECONDS]
        return f"{self.names(gone)} lost: no sign of life for {LOST_SECONDS:g} s" if gone else ""

    def hanging(self, states: dict[int, list], now: float) -> str:
        """Return a line that names the processes behind if none has advanced for `hang_seconds`; "" otherwise."""
        steps = {index: state[1] for index, state in states.items()}
        if steps != self.advanced[0] or any(state[3] or state[0] == "done" for state in states.values()):
            self.advanced = steps, now
        if not self.hang_seconds or len(states) < self.count or now - self.advanced[1] <= self.hang_seconds:
            return ""
        behind = [index for index, count in steps.items() if count == min(steps.values())]
        if len(behind) == self.count:
            return f"no process has advanced for {self.hang_seconds:g} s; all are at {states[0][2]} (--hang-timeout)"
        doing = states[behind[0]][2]
        seconds = f"{self.hang_seconds:g} s"
        return f"{self.names(behind)} hanging at {doing} for {seconds}, the others are ahead (--hang-timeout)"

    def tell(self, code: int, message: str) -> None:
        """Have the other processes end. The first who tells decides."""
        text = json.dumps({"process": self.index, "code": code, "message": message})
        with suppress(Exception):  # the coordinator has ended, and the others with it, or somebody told before
            self.client.key_value_set(_END, text)

    def say_done(self) -> None:
        """Write that no further sign of life is to be expected."""
        with suppress(Exception):
            done = json.dumps(["done", self.steps, "done", 1])
            self.client.key_value_set(f"{_ALIVE}{self.index}", done, allow_overwrite=True)

    def wait_for_farewells(self) -> None:
        """In process 0, wait until the others have said that they end, FAREWELL_SECONDS at most."""
        deadline = time.monotonic() + FAREWELL_SECONDS * (self.index == 0)
        with suppress(Exception):
            while time.monotonic() < deadline:
                states = {key: json.loads(value)[0] for key, value in self.client.key_value_dir_get(_ALIVE)}
                states.pop(f"{_ALIVE}{self.index}", None)
                if list(states.values()).count("done") >= self.count - 1:
                    return
                time.sleep(BEAT_SECONDS / 4)

    def name(self, index: int) -> str:
        """Return "process 1 (node2)"."""
        if index not in self.hosts:
            with suppress(Exception):
                self.hosts[index] = json.loads(self.client.key_value_try_get(f"{_HOST}{index}"))["host"]
        return f"process {index}" + (f" ({self.hosts[index]})" if index in self.hosts else "")

    def names(self, indices: list[int]) -> str:
        """Return "process 1 (node2) is", or the names of several processes and "are"."""
        return ", ".join(map(self.name, sorted(indices))) + (" is" if len(indices) == 1 else " are")


_watch: Watch | None = None


def start(leave: Callable[[int, str], NoReturn], hang_seconds: float = HANG_SECONDS) -> None:
    """Begin to watch the other processes, if there are any.

    Args:
        leave: ends this process: (exit code, message).
        hang_seconds: see HANG_SECONDS.
    """
    global _watch
    client = coordinator()
    if client is None or jax.process_count() == 1 or _watch is not None:
        return
    _watch = Watch(client, jax.process_index(), jax.process_count(), leave)
    _watch.hang_seconds = hang_seconds
    register_host()  # a program that has joined the group by itself has not
    _watch.hosts = {index: about["host"] for index, about in enumerate(hosts())}
    _watch.start()


def stop() -> None:
    """Tell the others that this process has done its work, and watch them no longer.

    Process 0 waits for theirs: where it ends first, as after a signal, JAX ends the others with an error.
    """
    global _watch
    if _watch is not None:
        _watch.ended.set()
        _watch.say_done()
        _watch.wait_for_farewells()
        _watch = None


def advance(doing: str) -> None:
    """Record that this process has begun another step or batch."""
    if _watch is not None:
        _watch.steps += 1
        _watch.doing, _watch.exempt = doing, 0


@contextmanager
def exempt(doing: str) -> Iterator[None]:
    """Mark a block that may take any time, such as a compilation."""
    if _watch is None:
        yield
        return
    before = _watch.doing, _watch.exempt
    _watch.doing, _watch.exempt = doing, 1
    try:
        yield
    finally:
        _watch.doing, _watch.exempt = before


def tell_others(code: int, message: str) -> None:
    """Have the other processes end with this code, after a line that says why."""
    if _watch is not None:
        _watch.ended.set()
        _watch.tell(code, f"{_watch.name(_watch.index)} {message}")
        _watch.say_done()
        _watch.wait_for_farewells()


def cause_elsewhere(seconds: float) -> bool:
    """Wait until another process is known to have failed first, which ends this one; return False after `seconds`.

    An error of a collective operation says only that some process is gone. That process may have told why, or will be
    missed soon.
    """
    deadline = time.monotonic() + seconds
    while _watch is not None and time.monotonic() < deadline:
        time.sleep(0.2)
    return False


def register_host() -> None:
    """Write what the others should know of this process: its host, devices and versions."""
    client = coordinator()
    if client is None:
        return
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": "{}.{}".format(*sys.version_info)}
    for package in ("jax-model-zoo", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"):
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    about = {"host": socket.gethostname(), "pid": os.getpid(), "devices": len(jax.local_devices()),
             "kind": jax.local_devices()[0].device_kind, "versions": versions}  # fmt: skip
    client.key_value_set(f"{_HOST}{jax.process_index()}", json.dumps(about), allow_overwrite=True)


def hosts(timeout: float = 120.0) -> list[dict[str, Any]]:
    """Return what each process has registered, in their order."""
    client = coordinator()
    if client is None:
        return []
    keys = [f"{_HOST}{index}" for index in range(jax.process_count())]
    return [json.loads(client.blocking_key_value_get(key, int(1000 * timeout))) for key in keys]


def require_same_versions(about: list[dict[str, Any]]) -> None:
    """Raise ValueError in one line if the processes run different versions."""
    if not about:
        return
    first = about[0]
    for index, other in enumerate(about):
        names = sorted({*first["versions"], *other["versions"]})
        different = [
            f"{name} is {other['versions'].get(name, 'absent')}, not {first['versions'].get(name, 'absent')}"
            for name in names if other["versions"].get(name) != first["versions"].get(name)
        ]  # fmt: skip
        if different:
            raise ValueError(
                f"process {index} ({other['host']}) runs other versions than process 0 ({first['host']}): "
                f"{'; '.join(different)}. Install the same on all hosts"
            )


def describe_hosts(about: list[dict[str, Any]]) -> list[str]:
    """Return a line per host: "node1: processes 0-3, 4 x NVIDIA H100"."""
    lines = []
    for host in dict.fromkeys(other["host"] for other in about):
        own = [index for index, other in enumerate(about) if other["host"] == host]
        devices = sum(about[index]["devices"] for index in own)
        consecutive = own == list(range(own[0], own[-1] + 1)) and len(own) > 2
        numbers = f"{own[0]} to {own[-1]}" if consecutive else ", ".join(map(str, own))
        lines.append(f"{host}: process{'es' * (len(own) > 1)} {numbers}; {devices} x {about[own[0]]['kind']}")
    return lines
