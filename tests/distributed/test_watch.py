"""The watch over other processes, with a dictionary in place of the coordinator's store."""

import json

import pytest

from zoo.distributed import watch
from zoo.distributed.watch import Watch


class Ended(Exception):
    pass


class Store:
    """The key-value store of the coordinator."""

    def __init__(self):
        self.values = {}
        self.reachable = True

    def key_value_set(self, key, value, allow_overwrite=False):
        if not self.reachable:
            raise RuntimeError("UNAVAILABLE")
        if key in self.values and not allow_overwrite:
            raise RuntimeError("ALREADY_EXISTS")
        self.values[key] = value

    def key_value_dir_get(self, prefix):
        return [(key, value) for key, value in self.values.items() if key.startswith(prefix)]

    def key_value_try_get(self, key):
        return self.values[key]


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(watch.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(watch.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    return now


@pytest.fixture
def group(clock):
    """Return (store, watches of three processes); the end of a process raises Ended(code, message)."""

    def leave(code, message):
        raise Ended(code, message)

    store = Store()
    watches = [Watch(store, index, 3, leave) for index in range(3)]
    for index, each in enumerate(watches):
        store.values[f"zoo/host/{index}"] = json.dumps({"host": f"node{index + 1}"})
        each.hang_seconds = 100.0
    return store, watches


def work(watches, clock, seconds, advancing=()):
    """Let time pass; every watch gives a sign of life each second, and some advance."""
    for _ in range(seconds):
        clock[0] += 1
        for each in watches:
            if each in advancing:
                each.steps, each.doing, each.exempt = each.steps + 1, f"step {each.steps + 1}", 0
            each.beat()
            each.check_answers(clock[0])


def test_a_process_without_a_sign_of_life_is_named(group, clock):
    _, watches = group
    work(watches, clock, 10, watches)
    with pytest.raises(Ended) as caught:
        work(watches[:1], clock, 60)
    code, message = caught.value.args
    assert code == watch.LOST_EXIT and "process 1 (node2), process 2 (node3) are lost" in message
    assert clock[0] <= 10 + watch.LOST_SECONDS + watch.FAREWELL_SECONDS + 2


def test_one_that_has_done_its_work_is_not_missed(group, clock):
    _, watches = group
    work(watches, clock, 5, watches)
    watches[2].say_done()
    work(watches[:2], clock, 90, watches[:2])


def test_a_failure_ends_the_others_with_its_code_and_message(group, clock):
    _, watches = group
    work(watches, clock, 5, watches)
    watches[1].tell(2, "process 1 (node2) failed: the disk is full")
    watches[2].tell(1, "process 2 (node3) failed: connection closed")  # a consequence: the first who tells decides
    for each in (watches[0], watches[2]):
        with pytest.raises(Ended) as caught:
            each.beat()
        assert caught.value.args == (2, "process 1 (node2) failed: the disk is full")
    watches[1].beat()


def test_process_0_ends_last_when_another_has_failed(group, clock, monkeypatch):
    """JAX would end those that have not yet read the reason with an error of its own."""
    _, watches = group
    work(watches, clock, 5, watches)
    monkeypatch.setattr(watch, "_watch", watches[1])
    watch.tell_others(2, "failed: the disk is full")
    others = []

    def sleep(seconds):
        clock[0] += seconds
        with pytest.raises(Ended):
            watches[2].beat()
        others.append(clock[0])

    monkeypatch.setattr(watch.time, "sleep", sleep)
    with pytest.raises(Ended, match="the disk is full"):
        watches[0].beat()
    assert len(others) == 1 and clock[0] - 5 < 1  # and it waits for nobody who has told or read it


def test_process_0_ends_last_after_a_signal_to_all(group, clock, monkeypatch):
    store, watches = group
    work(watches, clock, 5, watches)
    for each in (watches[1], watches[2], watches[0]):
        monkeypatch.setattr(watch, "_watch", each)
        watch.tell_others(75, "was interrupted while compiling")
        assert clock[0] == 5
    store.values["zoo/alive/2"] = json.dumps([9, 9, "step 9", 0])
    monkeypatch.setattr(watch, "_watch", watches[0])
    watch.stop()
    assert clock[0] >= 5 + watch.FAREWELL_SECONDS


def test_process_0_waits_until_the_others_have_read_why_it_failed(group, clock):
    store, watches = group
    began = clock[0]
    watches[0].tell(2, "failed")
    for each in watches[1:]:
        with pytest.raises(Ended):
            each.beat()
    watches[0].wait_for_farewells()
    assert clock[0] == began  # both have said that they end
    del store.values["zoo/alive/1"]
    watches[0].wait_for_farewells()
    assert 0 < clock[0] - began <= watch.FAREWELL_SECONDS + 1
    began = clock[0]
    watches[1].wait_for_farewells()  # nobody depends on it
    assert clock[0] == began


@pytest.mark.parametrize("behind", [[1], [0, 2]])
def test_a_process_that_hangs_is_named(group, clock, behind):
    """All give signs of life; those that hang have not begun the step in which the others wait."""
    _, watches = group
    work(watches, clock, 5, watches)
    work(watches, clock, 1, [each for each in watches if each.index not in behind])
    with pytest.raises(Ended) as caught:
        work(watches, clock, 120)
    message = caught.value.args[1]
    assert all((f"process {index} " in message) == (index in behind) for index in range(3))
    assert "hanging at step 5 for 100 s" in message and "--hang-timeout" in message


def test_if_no_process_is_behind_the_step_is_named(group, clock):
    _, watches = group
    work(watches, clock, 5, watches)
    with pytest.raises(Ended, match="no process has advanced for 100 s; all are at step 5"):
        work(watches, clock, 120)


@pytest.mark.parametrize("exempt", [True, False])
def test_compiling_may_take_any_time_and_0_is_no_limit(group, clock, exempt):
    _, watches = group
    work(watches, clock, 5, watches)
    for each in watches:
        each.hang_seconds = 100.0 if exempt else 0.0
    watches[1].exempt = exempt
    work(watches, clock, 300)


def test_a_coordinator_that_does_not_answer_is_named(group, clock):
    store, watches = group
    work(watches, clock, 5, watches)
    store.reachable = False
    work(watches[1:], clock, 5)
    store.reachable = True
    work(watches[1:], clock, 1, watches)  # it answers again
    store.reachable = False
    with pytest.raises(Ended, match=r"process 0 \(node1\) is lost"):
        work(watches[1:], clock, 60)


def test_a_machine_that_was_asleep_ends_nobody(group, clock):
    _, watches = group
    work(watches, clock, 5, watches)
    clock[0] += 10_000
    work(watches, clock, 30, watches)
    clock[0] += 10_000
    work(watches[:2], clock, 20, watches[:2])  # the third has as long as ever to give a sign of life
    with pytest.raises(Ended, match="process 2"):
        work(watches[:2], clock, 20, watches[:2])


def test_alone_nothing_is_watched():
    watch.start(lambda *about: pytest.fail("ended"))
    watch.advance("step 1")
    with watch.exempt("compiling"):
        watch.tell_others(2, "failed")
    watch.stop()
    watch.register_host()
    assert watch.hosts() == [] and watch.describe_hosts([]) == []
    assert not watch.cause_elsewhere(60)


def about(host, jax="0.10.2", **more):
    return {"host": host, "devices": 2, "kind": "H100", "versions": {"jax": jax, **more}}


def test_other_versions_are_refused():
    watch.require_same_versions([about("a"), about("b")])
    with pytest.raises(ValueError, match=r"process 1 \(b\) .* process 0 \(a\): jax is 0.9.0, not 0.10.2; optax is abs"):
        watch.require_same_versions([about("a", optax="0.2"), about("b", "0.9.0"), about("c", optax="0.2")])


def test_a_line_per_host():
    lines = watch.describe_hosts([about(host) for host in "aaaabbc"])
    assert lines == ["a: processes 0 to 3; 8 x H100", "b: processes 4, 5; 4 x H100", "c: process 6; 2 x H100"]
