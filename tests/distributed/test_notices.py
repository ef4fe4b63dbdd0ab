"""Notices of preemption, from a server of metadata on loopback."""

import signal
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from zoo.distributed import notices


@pytest.fixture
def metadata(monkeypatch):
    """Return the values that a server answers with, by the end of their path."""
    values = {"preempted": "FALSE", "maintenance-event": "NONE"}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.removeprefix("/computeMetadata/v1/instance/")
            known = name in values and self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200 if known else 403)
            self.end_headers()
            self.wfile.write(values.get(name, "").encode())

        def log_message(self, *about):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{server.server_port}")
    monkeypatch.setattr(notices, "POLL_SECONDS", 0.01)
    yield values
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("name", "value", "notice"),
    [
        ("preempted", "FALSE", ""), ("preempted", "TRUE", "preempted"),
        ("maintenance-event", "MIGRATE_ON_HOST_MAINTENANCE", ""),
        ("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE", "TERMINATE_ON_HOST_MAINTENANCE"),
    ],
)  # fmt: skip
def test_notices_are_told_from_other_events(metadata, name, value, notice):
    assert notices.on_google_cloud()
    metadata[name] = value
    assert notices.read_notice() == notice


def test_a_notice_is_a_signal(metadata):
    arrived = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *about: arrived.set())
    try:
        notices.watch_notices()
        assert not arrived.wait(0.05)
        metadata["preempted"] = "TRUE"
        assert arrived.wait(20)
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("product", ["Google Compute Engine\n", "Standard PC\n", None])
def test_the_machine_is_known_by_its_product_name(monkeypatch, tmp_path, product):
    monkeypatch.delenv("GCE_METADATA_HOST", raising=False)
    monkeypatch.setattr(notices, "_PRODUCT", tmp_path / "product_name")
    if product is not None:
        (tmp_path / "product_name").write_text(product)
    assert notices.on_google_cloud() == (product is not None and product.startswith("Google"))


def test_a_server_that_does_not_answer_gives_no_notice(monkeypatch):
    monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:1")
    assert notices.read_notice() == ""
