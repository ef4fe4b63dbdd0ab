"""One writer at a time below an address: a lease that its holder renews, and that others may take once it expires.

Leases are numbered objects, .lock/000001.json, …, each created on condition that there is none of that number
(If-None-Match), so of several writers that want the next number one gets it. The holder writes its lease anew every few
seconds. Nobody's clock is trusted: a lease has expired when another process has watched it for EXPIRY_SECONDS without a
change. A holder that finds a higher number has lost its lease and must stop writing.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from zoo.addresses import join_address
from zoo.stores import objects
from zoo.stores.objects import StoreError
from zoo.text import one_line

RENEW_SECONDS = 10.0
EXPIRY_SECONDS = 60.0
#: Seconds between looks at a lease of another process.
POLL_SECONDS = 2.0
FOLDER, NAME = ".lock", re.compile(r"(\d{6})\.json")


class Lease:
    """The right to write below an address.

    Args:
        address: what is leased.
        owner: a text that only processes on this machine have which cannot run at the same time, because each holds the
            same local lock. A lease of the same owner is of a process that died, and is taken at once.
        say: called with a line if there is something to wait for.

    Raises:
        ValueError: if another process holds the lease and renews it.
    """

    def __init__(self, address: str, owner: str, say: Callable[[str], Any]):
        self.address, self.owner = address, owner
        self.token = uuid.uuid4().hex
        self.count = 0
        self.error: Exception | None = None
        self.ended = threading.Event()
        self.writing = threading.Lock()
        self.number = self._acquire(say)
        self._remove_older()
        self.thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self.thread.start()

    def _name(self, number: int) -> str:
        return join_address(self.address, FOLDER, f"{number:06d}.json")

    def _body(self, released: bool = False) -> bytes:
        self.count += 1
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "owner": self.owner, "token": self.token}
        return (json.dumps({**holder, "renewed": self.count, "released": released}) + "\n").encode()

    def _acquire(self, say: Callable[[str], Any]) -> int:
        waited_for: tuple[int, bytes] | None = None
        deadline = 0.0
        while True:
            number = latest_number(self.address)
            raw = b""
            if number:
                try:
                    raw = objects.read(self._name(number))
                except FileNotFoundError:  # replaced by the next one
                    continue
            holder = _parse(raw)
            free = not number or holder.get("released") or holder.get("owner") == self.owner
            if free or ((number, raw) == waited_for and time.monotonic() >= deadline):
                if objects.create(self._name(number + 1), self._body()):
                    return number + 1
                continue
            who = one_line(f"process {holder.get('pid')} on {holder.get('host')}", 100)
            if waited_for is None:
                say(
                    f"{self.address}: in use by {who}, or was when it died; waiting up to {EXPIRY_SECONDS:.0f} s to see"
                )
                waited_for, deadline = (number, raw), time.monotonic() + EXPIRY_SECONDS
            elif (number, raw) != waited_for:
                raise ValueError(f"{self.address}: another process is training in this folder ({who})")
            time.sleep(POLL_SECONDS)

    def _remove_older(self) -> None:
        for number in numbers(self.address):
            if number < self.number:
                objects.remove(self._name(number))

    def _renew(self) -> None:
        while not self.ended.wait(RENEW_SECONDS):
            try:
                self.check()
                with self.writing:
                    if not self.ended.is_set():
                        objects.write(self._name(self.number), self._body())
            except StoreError:  # the store cannot be reached: nobody else can take the lease meanwhile
                continue
            except Exception as error:
                self.error = error
                return

    def check(self) -> None:
        """Raise StoreError if another process has taken the lease over, so that nothing more may be written."""
        if self.error is None and latest_number(self.address) > self.number:
            self.error = StoreError(
                f"{self.address}: another process has taken over this run, since this one was not heard of for "
                f"{EXPIRY_SECONDS:.0f} s; nothing more is written there"
            )
        if self.error is not None:
            raise self.error

    def release(self) -> None:
        """Let other processes take the lease at once."""
        self.ended.set()
        with self.writing:
            if self.error is None and latest_number(self.address) == self.number:
                objects.write(self._name(self.number), self._body(released=True))


def numbers(address: str) -> list[int]:
    """Return the numbers of the leases below an address, in order."""
    return sorted(
        int(match[1]) for name in objects.listing(join_address(address, FOLDER)) if (match := NAME.fullmatch(name))
    )


def latest_number(address: str) -> int:
    """Return the number of the latest lease, 0 if there is none."""
    return max(numbers(address), default=0)


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
