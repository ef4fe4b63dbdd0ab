"""Notices of Google's machines, TPU VMs too, that they are about to be preempted or stopped for maintenance."""

import os
import signal
import threading
from pathlib import Path

from zoo.distributed.environments import read_metadata

POLL_SECONDS = 5.0

_PRODUCT = Path("/sys/class/dmi/id/product_name")


def on_google_cloud() -> bool:
    """Return True on a virtual machine of Google, or where GCE_METADATA_HOST names a server of its metadata."""
    if os.environ.get("GCE_METADATA_HOST"):
        return True
    try:
        return _PRODUCT.read_text(encoding="utf-8").startswith("Google")
    except (OSError, UnicodeError):
        return False


def read_notice() -> str:
    """Return the notice of an end that is near; "" if there is none. A live migration is none."""
    if read_metadata("preempted").strip() == "TRUE":
        return "preempted"
    event = read_metadata("maintenance-event").strip()
    return event if event.startswith("TERMINATE") else ""


def watch_notices() -> None:
    """Send SIGTERM to this process, from a thread, when a notice arrives; does nothing on other machines."""
    if on_google_cloud():
        threading.Thread(target=_watch, name="notices", daemon=True).start()


def _watch() -> None:
    while not read_notice():
        threading.Event().wait(POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
