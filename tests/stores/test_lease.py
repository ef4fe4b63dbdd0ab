"""One writer at a time: leases that are held, expire, and are lost."""

import time

import pytest
from helpers import assert_one_line

from zoo.stores import lease, objects
from zoo.stores.lease import Lease
from zoo.stores.objects import StoreError

ROOT = "memory://leases"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name in objects.listing(ROOT):
        objects.remove(f"{ROOT}/{name}")
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.02)
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 0.15)
    monkeypatch.setattr(lease, "POLL_SECONDS", 0.01)


def die(holder):
    """Stop renewing, as a process does that was killed."""
    holder.ended.set()
    holder.thread.join()


def test_a_lease_that_is_renewed_is_refused_to_others():
    said = []
    first = Lease(ROOT, "here", said.append)
    with pytest.raises(ValueError) as caught:
        Lease(ROOT, "there", said.append)
    assert_one_line(caught, ROOT, "another process")
    assert len(said) == 1
    first.check()
    first.release()
    second = Lease(ROOT, "there", said.append)
    assert second.number == 2
    assert len(said) == 1
    second.release()


def test_a_lease_of_a_dead_process_expires_and_one_that_was_thought_dead_stops():
    first = Lease(ROOT, "here", print)
    die(first)
    start = time.monotonic()
    second = Lease(ROOT, "there", lambda line: None)
    assert time.monotonic() - start >= lease.EXPIRY_SECONDS
    with pytest.raises(StoreError) as caught:
        first.check()
    assert_one_line(caught, ROOT, "another process")
    first.release()
    second.check()
    second.release()
    assert lease.numbers(ROOT) == [2]


def test_the_same_machine_takes_its_lease_at_once():
    die(Lease(ROOT, "here", print))
    second = Lease(ROOT, "here", pytest.fail)
    second.release()


def test_of_two_that_see_it_expired_one_gets_it(monkeypatch):
    die(Lease(ROOT, "here", print))
    create, others = objects.create, []

    def create_late(address, data):
        if not others:
            others.append(1)
            others.append(Lease(ROOT, "faster", print))
        return create(address, data)

    monkeypatch.setattr(objects, "create", create_late)
    with pytest.raises(ValueError, match="another process"):
        Lease(ROOT, "slower", lambda line: None)
    others[1].release()
