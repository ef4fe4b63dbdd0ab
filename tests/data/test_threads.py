import threading

import pytest

from zoo.data import threads
from zoo.data.threads import lookahead, prefetch, processors, run_all, tracked


def format_count(count, taken):
    for i in range(count):
        taken.append(i)
        yield i


def test_lookahead_takes_items_ahead_and_keeps_their_order():
    for depth in (0, 1, 3):
        taken = []
        items = lookahead(format_count(5, taken), lambda item, depth=depth: depth)
        for i in range(5):
            assert next(items) == i and len(taken) == min(5, i + 1 + depth)
        assert list(items) == []
    taken = []
    assert next(lookahead(format_count(5, taken))) == 0 and taken == [0, 1]  # one ahead by default
    assert list(lookahead([])) == []


def test_without_workers_each_item_is_made_on_request():
    taken, done = [], []
    items = prefetch(((i, [lambda i=i: done.append(i)] * 2) for i in format_count(3, taken)), 0)
    assert next(items) == 0 and taken == [0] and done == [0, 0]
    assert list(items) == [1, 2] and done == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("workers, tasks, ahead", [(1, 1, 2), (1, 4, 2), (4, 1, 8), (4, 3, 3), (4, 0, 8)])
def test_prefetch_plans_enough_tasks_for_all_workers(workers, tasks, ahead):
    """At least two items ahead, and at least two tasks per worker."""
    taken = []
    items = prefetch(((i, [lambda: None] * tasks) for i in format_count(20, taken)), workers)
    assert next(items) == 0 and len(taken) == 1 + ahead
    items.close()


def test_prefetch_waits_for_all_tasks_of_an_item():
    gate = threading.Event()
    done = []

    def late():
        gate.wait(10)
        done.append("late")

    items = prefetch(iter([("item", [lambda: done.append("early"), late])]), 2)
    threading.Timer(0.05, gate.set).start()
    assert next(items) == "item" and sorted(done) == ["early", "late"]


@pytest.mark.parametrize("workers", [0, 1, 3, None])
def test_run_all_runs_every_task_once_and_raises_the_error(workers):
    done = []
    run_all([lambda i=i: done.append(i) for i in range(10)], workers, "counting")
    assert sorted(done) == list(range(10))

    def fail():
        raise ValueError("task 3")

    with pytest.raises(ValueError, match="task 3"):
        run_all([fail], workers, "failing")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("zoo-loader")]


def test_workers_and_processors(monkeypatch):
    names = []
    run_all([lambda: names.append(threading.current_thread().name)], 0, "alone")
    assert names == [threading.current_thread().name]
    run_all([lambda: names.append(threading.current_thread().name)], None, "threads")
    assert names[1].startswith("zoo-loader")
    assert processors() >= 1
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert processors() == 3
    monkeypatch.delattr(threads.os, "sched_getaffinity")
    monkeypatch.setattr(threads.os, "cpu_count", lambda: None)
    assert processors() == 1


def test_progress_is_silent_without_a_terminal(capfd):
    assert list(tracked(range(2, 8, 3), "working")) == [2, 5]
    assert capfd.readouterr() == ("", "")
