"""Download from a local server: resuming, hash checks, and no wrong file left in the cache."""

import concurrent.futures
import dataclasses
import hashlib
import http.server
import re
import threading

import numpy as np
import pytest
import torch_bytes as tb
from networks import small

import zoo
from zoo import checkpoint, download
from zoo.cache import cache_folder
from zoo.pretrained import weights
from zoo.pretrained.download import fetch
from zoo.pretrained.registry import WEIGHTS


class Server:
    """Serves `files` with ranges; `cut`: bytes after which each of the next connections breaks off."""

    def __init__(self):
        self.files, self.headers, self.cut, self.redirect, self.ranges = {}, {}, [], {}, True
        self.asked = []  # (path, Range header)
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, handler):
        path, wanted = handler.path, handler.headers.get("Range")
        self.asked.append((path, wanted))
        if path in self.redirect:
            handler.send_response(302)
            handler.send_header("Location", self.redirect[path])
            for key, value in self.headers.items():
                handler.send_header(key, value)
            handler.end_headers()
            return
        data = self.files.get(path)
        if data is None:
            handler.send_error(404)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and self.ranges else 0
        if start >= len(data):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(data)}")
            handler.end_headers()
            return
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(data) - start))
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        handler.end_headers()
        body = data[start:]
        handler.wfile.write(body[: self.cut.pop(0)] if self.cut else body)
        handler.close_connection = True


@pytest.fixture
def server(monkeypatch):
    server = Server()
    monkeypatch.setenv("ZOO_WEIGHTS_URL", server.url)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture
def published(server, monkeypatch):
    """A set on the server: (its row, its bytes, its tensors)."""
    _, tensors = small()
    data = tb.state_dict(tensors)
    digest = hashlib.sha256(data).hexdigest()
    row = dataclasses.replace(
        WEIGHTS["akamaster:resnet20"], name="akamaster:resnet8", file=f"https://example.org/files/resnet8-{digest[:8]}.th",
        digest=f"sha256:{digest[:8]}", fields={"blocks": (1, 1, 1)},
    )  # fmt: skip
    monkeypatch.setitem(WEIGHTS, row.name, row)
    server.files[f"/resnet8-{digest[:8]}.th"] = data
    return row, data, tensors


def cache():
    """What is kept, but for locks; names without the format and the hash of their row."""
    folder = cache_folder() / "weights"
    names = [path.name for path in folder.iterdir() if path.suffix != ".lock"] if folder.exists() else []
    return sorted(re.sub(rf"-{checkpoint.FORMAT}-[0-9a-f]{{8}}$", "", name) for name in names)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_fetched_once_converted_and_kept(server, published):
    row, _, tensors = published
    for _ in range(2):
        loaded = zoo.load(row.name)
        assert np.array_equal(loaded.variables["params"]["head"]["bias"], tensors["linear.bias"])
    assert len(server.asked) == 1 and cache() == ["akamaster-resnet8"]
    assert "sha256 " in loaded.card.source and loaded.card.classes == row.classes


def test_two_at_once_fetch_once(server, published, monkeypatch):
    """The second waits for the first, which is still fetching, and finds the set."""
    pytest.importorskip("fcntl")
    row, _, tensors = published
    fetch, begun, inside, most = weights.fetch, threading.Barrier(2), [], []

    def slowly(*arguments):
        inside.append(1)
        most.append(len(inside))
        threading.Event().wait(0.2)
        try:
            return fetch(*arguments)
        finally:
            inside.pop()

    def load(_):
        begun.wait()
        return zoo.load(row.name).variables["params"]["head"]["bias"]

    monkeypatch.setattr(weights, "fetch", slowly)
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        for bias in threads.map(load, range(2)):
            assert np.array_equal(bias, tensors["linear.bias"])
    assert most == [1] and len(server.asked) == 1 and cache() == ["akamaster-resnet8"]


def test_another_row_or_format_is_another_copy(published, monkeypatch):
    row, _, _ = published
    folders = {weights.cached_folder(row), weights.cached_folder(dataclasses.replace(row, licence="other"))}
    assert weights.cached_folder(dataclasses.replace(row)) in folders
    monkeypatch.setattr(checkpoint, "FORMAT", checkpoint.FORMAT + 1)
    folders.add(weights.cached_folder(row))
    assert len(folders) == 3 and len({folder.parent for folder in folders}) == 1


def test_a_damaged_copy_is_fetched_anew(server, published):
    row, _, _ = published
    zoo.load(row.name)
    card = weights.cached_folder(row) / "card.json"
    card.write_text(card.read_text().replace("cat", "dog"))
    assert "cat" in zoo.load(row.name).card.classes and len(server.asked) == 2


@pytest.mark.parametrize("ranges", [True, False])
def test_cut_connections_are_resumed(ranges, server, published):
    row, _data, _ = published
    server.cut, server.ranges = [1000, 500], ranges
    zoo.load(row.name)
    assert [wanted for _, wanted in server.asked] == [None, "bytes=1000-", f"bytes={1500 if ranges else 500}-"]
    assert cache() == ["akamaster-resnet8"]


def test_progress_resets_the_count_of_failed_attempts(server, published):
    """A connection that is cut often, but each time later in the file, must not exhaust the attempts."""
    row, data, _ = published
    cuts = 2 * download.ATTEMPTS + 1
    server.cut = [100] * cuts
    zoo.load(row.name)
    expected = [None] + [f"bytes={100 * (number + 1)}-" for number in range(cuts)]
    assert [wanted for _, wanted in server.asked] == expected and 100 * cuts < len(data)


@pytest.mark.parametrize("failures", [download.ATTEMPTS - 1, download.ATTEMPTS])
def test_number_of_attempts_without_progress(failures, server, published):
    """One attempt fewer than ATTEMPTS may fail in a row; the next failure ends the download."""
    row, _data, _ = published
    server.cut = [1000] + [0] * failures
    if failures < download.ATTEMPTS:
        zoo.load(row.name)
        assert cache() == ["akamaster-resnet8"]
    else:
        with pytest.raises(ConnectionError, match=row.name):
            zoo.load(row.name)
    assert download.ATTEMPTS == 5 and len(server.asked) == 1 + download.ATTEMPTS


def test_a_later_call_resumes_an_abandoned_download(server, published):
    row, _data, _ = published
    server.cut = [1000] + [0] * download.ATTEMPTS
    with pytest.raises(ConnectionError, match=r"resnet8.*zoo import \S+ --as akamaster:resnet8"):
        zoo.load(row.name)
    assert [name.endswith(".th.part") for name in cache()] == [True]
    server.asked.clear()
    zoo.load(row.name)
    assert server.asked[0][1] == "bytes=1000-" and cache() == ["akamaster-resnet8"]


def test_a_complete_partial_file_is_not_downloaded_again(server, published):
    row, data, _ = published
    folder = weights.cached_folder(row).parent
    folder.mkdir(parents=True)
    file = row.file.rpartition("/")[2]
    (folder / f"akamaster-resnet8-{file}.part").write_bytes(data)
    zoo.load(row.name)
    assert server.asked == [(f"/{file}", f"bytes={len(data)}-")]


def test_a_partial_file_of_another_version_is_discarded(server, published):
    row, _data, _ = published
    folder = weights.cached_folder(row).parent
    folder.mkdir(parents=True)
    (folder / f"akamaster-resnet8-{row.file.rpartition('/')[2]}.part").write_bytes(bytes(1000))
    zoo.load(row.name)
    assert [wanted for _, wanted in server.asked] == ["bytes=1000-", None]


@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_a_wrong_hash_is_refused_and_nothing_is_left(kind, server, published, monkeypatch):
    row, data, _ = published
    right = f"{kind}:{hashlib.new(kind, data).hexdigest()}"
    monkeypatch.setitem(WEIGHTS, row.name, dataclasses.replace(row, digest=right))
    path = next(iter(server.files))
    server.files[path] = bytes([data[0] ^ 1]) + data[1:]
    with pytest.raises(download.HashMismatchError, match=rf"{path}.*{kind}"):
        zoo.load(row.name)
    assert cache() == []
    server.files[path] = data
    zoo.load(row.name)
    assert cache() == ["akamaster-resnet8"]


def test_the_digest_of_the_registry_wins_over_the_announced_one(server, published, tmp_path):
    """A server cannot vouch for its own file: a digest in WEIGHTS is checked even if the server announces another."""
    row, data, _ = published
    row = dataclasses.replace(row, digest=f"sha256:{'0' * 8}")
    (path,), announced = server.files, hashlib.sha256(data).hexdigest()
    server.redirect[path], server.files["/cdn"] = "/cdn", data
    server.headers["X-Linked-ETag"] = f'"{announced}"'
    with pytest.raises(download.HashMismatchError, match="00000000"):
        fetch(row, tmp_path / "downloads")
    assert list((tmp_path / "downloads").iterdir()) == []


def test_a_file_that_cannot_be_read_is_not_kept(server, published, monkeypatch):
    row, _, _ = published
    data = tb.zipped(tb.mapping({"weight": tb.called("posix", "system", tb.text("true"))}), {})
    server.files[next(iter(server.files))] = data
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    monkeypatch.setitem(WEIGHTS, row.name, dataclasses.replace(row, digest=digest))
    with pytest.raises(ValueError, match=r"import posix\.system"):
        zoo.load(row.name)
    assert cache() == []


@pytest.mark.parametrize("announced", ["X-Linked-ETag", "ETag"])
def test_the_hub_announces_the_hash(announced, server, published, monkeypatch):
    row, data, _ = published
    row = dataclasses.replace(row, file="timm/resnet8.a1_in1k/model.safetensors", digest="")
    monkeypatch.setitem(WEIGHTS, row.name, row)
    path = "/timm/resnet8.a1_in1k/resolve/main/model.safetensors"
    server.redirect[path], server.files["/cdn"] = "/cdn", safetensors(data)
    server.headers[announced] = f'"{hashlib.sha256(server.files["/cdn"]).hexdigest()}"'
    zoo.load(row.name)
    assert [path for path, _ in server.asked] == [path, "/cdn"] and cache() == ["akamaster-resnet8"]
    weights.shutil.rmtree(weights.cached_folder(row))
    server.headers[announced] = f'"{"0" * 64}"'
    with pytest.raises(ValueError, match=r"its sha256 is .* instead of 0000"):
        zoo.load(row.name)
    server.headers.clear()
    with pytest.raises(ValueError, match="announces no sha256"):
        zoo.load(row.name)
    assert cache() == []


def safetensors(data):
    """The same tensors in the hub's form."""
    import tempfile
    from pathlib import Path

    from safetensors.numpy import save

    from zoo.pretrained.readers import read_tensors

    with tempfile.TemporaryDirectory() as folder:
        (file := Path(folder, "x.pth")).write_bytes(data)
        return save(read_tensors(file).arrays)


def test_without_a_network_the_error_says_what_to_bring(server, published, capsys):
    from zoo import cli

    row, _data, _ = published
    server.files.clear()
    with pytest.raises(ConnectionError, match=r"404: Not Found.*zoo import \S+ --as akamaster"):
        zoo.load(row.name)
    server.server.shutdown()
    server.server.server_close()
    assert cli.main(["predict", row.name, "x.png"]) == 2
    error = capsys.readouterr().err
    command = re.search(r"zoo (import \S+ --as \S+)", error)[1].split()
    assert server.url in error and "refused" in error and error.count("\n") == 1 and cache() == []
    assert command == ["import", row.file.rpartition("/")[2], "--as", row.name]


def test_the_file_brought_by_hand_is_taken(published, server, tmp_path, monkeypatch, capsys):
    from zoo import cli

    row, data, _ = published
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("zoo.commands.import_weights.start_jax", lambda: None)
    file = tmp_path / row.file.rpartition("/")[2]
    file.write_bytes(data)
    assert cli.main(["import", file.name, "--as", row.name]) == 0
    assert "zoo predict akamaster:resnet8" in capsys.readouterr().out
    assert zoo.load(row.name).card.classes == row.classes and server.asked == []
