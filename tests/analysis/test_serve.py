"""The page of `zoo serve`: answers, limits and refusals over HTTP, and a dropped file in Chromium."""

import http.client
import io
import json
import socket
import threading
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import run_command
from PIL import Image

import zoo
from zoo.analysis import serve
from zoo.analysis.neighbours import neighbours_in, read_neighbours
from zoo.data.dataset import Dataset, subset
from zoo.data.images.preprocess import Preprocess

DIGIT = Path(__file__).parents[2] / "docs" / "digit.png"


@pytest.fixture(scope="module")
def loaded():
    return zoo.load(Path(__file__).parents[2] / "checkpoints" / "lenet5-mnist")


@pytest.fixture(scope="module")
def server(loaded):
    with serve.Server(serve.Classifier(loaded, "digits <b>")) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server, method, path, body=None, **headers):
    """Return (status, headers, body) of a request; keyword `Host_` etc. are headers."""
    connection = http.client.HTTPConnection(*server.server_address, timeout=60)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer.status, answer.headers, data


def test_the_page_loads_nothing_from_elsewhere(server):
    status, headers, data = ask(server, "GET", "/")
    text = data.decode()
    assert status == 200 and headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"
    assert (
        "digits &lt;b&gt;" in text
        and "default-src &#x27;none&#x27;" in text
        and "http" not in text.replace("http-", "")
    )
    assert server.server_address[0] == "127.0.0.1"
    status, headers, data = ask(server, "HEAD", "/")
    assert status == 200 and data == b"" and int(headers["Content-Length"]) == len(text.encode())


def test_an_image_is_classified_as_predict_does(server, loaded):
    status, _, data = ask(server, "POST", "/classify", DIGIT.read_bytes())
    answer = json.loads(data)
    expected = loaded.predict(DIGIT)[0]
    assert status == 200 and answer["target"] == expected.label == "7" and answer["stage"] == "conv2"
    assert [row["name"] for row in answer["top"]] == [name for name, _ in expected.top]
    np.testing.assert_allclose([row["probability"] for row in answer["top"]], [p for _, p in expected.top], rtol=1e-4)
    assert answer["image"].startswith("data:image/png;base64,") and answer["map"].startswith("data:image/")
    other = json.loads(ask(server, "POST", "/classify?target=3", DIGIT.read_bytes())[2])
    assert other["target"] == "3" and other["map"] != answer["map"] and other["image"] == answer["image"]


@pytest.mark.parametrize(
    ("port", "host", "origin", "is_own"),
    [
        (80, "127.0.0.1", "http://localhost", True), (80, "localhost:80", None, True),  # browsers leave ":80" out
        (8000, "localhost:8000", "http://127.0.0.1:8000", True), (8000, "localhost", None, False),
        (80, "evil.example", None, False), (80, "localhost", "http://evil.example", False),
    ],
)  # fmt: skip
def test_the_names_of_the_server(port, host, origin, is_own):
    handler = serve.Handler.__new__(serve.Handler)  # without a connection: port 80 belongs to others
    handler.server = SimpleNamespace(server_address=(serve.ADDRESS, port))
    handler.headers = {"Host": host, **({"Origin": origin} if origin else {})}
    with nullcontext() if is_own else pytest.raises(serve.RequestError):
        handler._require_own_host()


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("GET", "/", None, {"Host": "evil.example"}, 403),
        ("GET", "/", None, {"Host": "127.0.0.1"}, 403),
        ("POST", "/classify", b"x", {"Host": "evil.example:80"}, 403),
        ("POST", "/classify", b"x", {"Origin": "http://evil.example"}, 403),
        ("POST", "/classify", b"x", {"Origin": "null"}, 403),
        ("GET", "/../card.json", None, {}, 404),
        ("GET", "/classify", None, {}, 404),
        ("POST", "/", b"x", {}, 404),
        ("POST", "/classify", b"no image", {}, 400),
        ("POST", "/classify", b"", {}, 400),
        ("POST", "/classify?target=eleven", DIGIT.read_bytes(), {}, 400),
        ("POST", "/classify", b"", {"Content_Length": str(serve.MAX_BYTES + 1)}, 413),
        ("POST", "/classify", b"", {"Content_Length": "-1"}, 411),
        ("PUT", "/classify", b"x", {}, 501),
    ],
)
def test_refusals(server, method, path, body, headers, status):
    answer = ask(server, method, path, body, **headers)
    assert answer[0] == status
    if status not in (403, 501):
        assert "error" in json.loads(answer[2]) and b"Traceback" not in answer[2]


def test_a_body_without_length_and_one_that_is_cut_off(server):
    for request, status in (
        (b"POST /classify HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n\r\n", b"411"),
        (b"POST /classify HTTP/1.1\r\nHost: %s\r\nContent-Length: 9\r\n\r\nfour", b"400"),
    ):
        host = f"127.0.0.1:{server.server_address[1]}".encode()
        with socket.create_connection(server.server_address, 30) as connection:
            connection.sendall(request % host)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(4096).split()[1] == status
    assert ask(server, "GET", "/")[0] == 200


def test_many_requests_at_once(server):
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(ask(server, "POST", "/classify", DIGIT.read_bytes())[0]))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [200] * 6


def test_a_network_without_positions_has_no_map(tmp_path):
    model = zoo.create("softmax", image_size=4, num_classes=2)
    preprocess = Preprocess((4, 4), (4, 4), channels="L", mean=(0.5,), std=(0.5,))
    zoo.save(tmp_path / "c", model, zoo.init(model, 0, (4, 4, 1)), ("a", "b"), preprocess)
    classifier = serve.Classifier(zoo.load(tmp_path / "c"), "softmax")
    buffer = io.BytesIO()
    Image.new("L", (8, 8), 90).save(buffer, "PNG")
    answer = classifier.answer(buffer.getvalue(), None)
    assert answer["map"] == "" and answer["stage"] == "" and len(answer["top"]) == 2
    assert b"<select" not in classifier.page


@pytest.fixture(scope="module")
def digits():
    """Twenty images of every class of digits, as training images."""
    split = zoo.open_dataset("digits").splits["train"]
    chosen = np.concatenate([np.flatnonzero(split.labels == k)[:20] for k in range(10)])
    return Dataset("some digits", {"train": subset(split, np.isin(np.arange(len(split)), chosen))}, tuple("0123456789"))


def test_the_nearest_training_images(loaded, digits, tmp_path):
    features = zoo.features(loaded, digits)
    rows, labels = features.splits["train"]
    features.save(tmp_path / "f.npz")
    found = neighbours_in(loaded, digits)
    again = read_neighbours(loaded, tmp_path / "f.npz", lambda features: digits)
    classifier = serve.Classifier(loaded, "digits", again)
    buffer = io.BytesIO()
    Image.fromarray(digits.splits["train"].read(np.array([123]))[0, :, :, 0]).save(buffer, "PNG")
    answer = classifier.answer(buffer.getvalue(), None)["nearest"]
    assert len(answer) == 6 and answer[0]["similarity"] == pytest.approx(1, abs=1e-5)  # itself
    assert answer[0]["label"] == str(labels[123]) and answer[0]["image"].startswith("data:image/png")
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    order = np.argsort(-unit @ unit[123])[:6]
    assert [entry["label"] for entry in answer] == [str(labels[i]) for i in order]
    np.testing.assert_allclose([entry["similarity"] for entry in answer], (unit @ unit[123])[order], atol=1e-4)
    pixels = zoo.preprocess(digits.splits["train"].read(np.array([123]))[0], loaded, normalised=False)
    assert [entry.name for entry in found.nearest(pixels)] == [entry["file"] for entry in answer]
    assert serve.Classifier(loaded, "digits").answer(buffer.getvalue(), None)["nearest"] == []


def test_features_of_other_networks_and_images_are_refused(loaded, digits, tmp_path, capsys):
    features = zoo.features(loaded, digits)
    features._replace(origin=None).save(tmp_path / "unknown.npz")
    features._replace(splits={"test": features.splits["train"]}, files={}, sketches={}).save(tmp_path / "test.npz")
    features.save(tmp_path / "f.npz")
    other = Dataset("other", {"train": zoo.open_dataset("digits").splits["test"]}, digits.class_names)
    for file, data, named in (
        ("unknown.npz", digits, "another network"),
        ("test.npz", digits, "it has test"),
        ("f.npz", other, "other images than other"),
        ("f.npz", Dataset("none", {"test": other.splits["train"]}, digits.class_names), "no train split"),
    ):
        with pytest.raises(ValueError, match=named):
            read_neighbours(loaded, tmp_path / file, lambda features, data=data: data)
    code, _, err = run_command(capsys, "serve", "lenet5-mnist", "--features", "f.npz")
    assert code == 2 and "--features belongs to --nearest" in err


def test_a_taken_port_is_one_line(server, capsys):
    port = server.server_address[1]
    code, _, err = run_command(capsys, "serve", "lenet5-mnist", "--port", port)
    assert code == 2 and str(port) in err and "--port 0" in err and err.count("\n") == 1
    code, _, err = run_command(capsys, "serve", "lenet5-mnist", "--port", 70000)
    assert code == 2 and "65535" in err


@pytest.mark.browser
def test_a_file_dropped_in_chromium(server, loaded, digits, tmp_path):
    from chromium import Page

    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    server.classifier.neighbours = neighbours_in(loaded, digits)
    with Page(1000, 1200) as browser:
        browser.open(server.url)
        assert browser.evaluate("document.getElementById('result').hidden")
        browser.drop_file("#drop", DIGIT)
        browser.wait_for("document.getElementById('status').textContent.startsWith('7, ')")
        assert browser.evaluate("[...document.images].every(i => i.naturalWidth > 0)")
        assert browser.evaluate("document.querySelectorAll('#top li').length") == 5
        assert (
            browser.evaluate("[...document.querySelectorAll('#nearest li span')].map(s => s.textContent[0])[0]") == "7"
        )
        assert browser.evaluate("document.querySelectorAll('#nearest img').length") == 6
        first = browser.evaluate("document.getElementById('map').src")
        browser.evaluate("document.querySelectorAll('#top button')[1].click()")
        browser.wait_for(f"document.getElementById('map').src !== {json.dumps(first)}")
        assert browser.evaluate("document.querySelectorAll('#top button')[1].getAttribute('aria-pressed')") == "true"
        browser.evaluate(
            "(c => { c.value = '0'; c.dispatchEvent(new Event('change')) })(document.getElementById('class'))"
        )
        browser.wait_for("document.getElementById('map-text').textContent.includes('for 0 ')")
        assert browser.problems() == []
        browser.drop_file("#drop", broken)
        browser.wait_for("document.getElementById('status').classList.contains('bad')")
        assert "image" in browser.evaluate("document.getElementById('status').textContent")
        assert all(url.startswith(server.url) for url in browser.requests())
        browser.screenshot(tmp_path / "page.png")
