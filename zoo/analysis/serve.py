"""`zoo serve`: classify images on a page of this computer.

The server listens on the loopback interface only. It answers only to its own name, so that a web page elsewhere cannot
reach it by pointing a domain at 127.0.0.1, and only to its own page. Images are kept in memory and nowhere else.
"""

import json
import os
import threading
from http import HTTPStatus
from http.client import HTTP_PORT
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from zoo.analysis import pictures
from zoo.analysis.explain import explain_pixels, spatial_stages
from zoo.analysis.neighbours import Neighbours
from zoo.analysis.page.classify import page
from zoo.data.images.decode import decode_images
from zoo.data.images.preprocess import images_to_input
from zoo.inference.predict import Checkpoint, classify, require_head
from zoo.text import error_line

ADDRESS = "127.0.0.1"
MAX_BYTES = 32 * 2**20  # of an image file
TIMEOUT = 30.0  # seconds in which a request must arrive
SIDE = 480  # pixels of a picture that is sent back
THUMBNAIL = 160  # pixels of a training image


class RequestError(Exception):
    """A request that is refused.

    Attributes:
        status: HTTP status of the answer.
    """

    def __init__(self, status: HTTPStatus, message: str):
        super().__init__(message)
        self.status = status


class Classifier:
    """A checkpoint that answers requests, one at a time.

    Args:
        checkpoint: the network.
        title: its name on the page.
        neighbours: its training images, to show the nearest ones; None for none.
    """

    def __init__(self, checkpoint: Checkpoint, title: str, neighbours: Neighbours | None = None):
        require_head(checkpoint.card)
        self.checkpoint, self.neighbours, self.lock = checkpoint, neighbours, threading.Lock()
        self.stage = "".join(list(spatial_stages(checkpoint))[-1:])
        self.page = page(title, checkpoint.card.classes, bool(self.stage)).encode("utf-8")

    def warm_up(self) -> None:
        """Compile everything that a request needs."""
        self._answer(np.zeros((1, *self.checkpoint.card.preprocess.input_shape), np.uint8), None)

    def answer(self, data: bytes, target: str | None) -> dict[str, Any]:
        """Classify the bytes of an image.

        Args:
            data: an image file.
            target: the class that Grad-CAM explains; None for the most probable one.

        Returns:
            {"top": [{"name": …, "probability": …}], "target": …, "target_probability": …, "image": data URI of the
            network's input, "map": data URI of Grad-CAM or "", "stage": its stage, "nearest": [{"label": …,
            "similarity": …, "file": …, "image": data URI}]}.

        Raises:
            ValueError: for bytes that are no image, and for unknown classes.
        """
        card = self.checkpoint.card
        return self._answer(images_to_input(decode_images(data, card.preprocess.white), card.preprocess), target)

    def _answer(self, pixels: np.ndarray, target: str | None) -> dict[str, Any]:
        card, channels = self.checkpoint.card, self.checkpoint.card.preprocess.channels
        with self.lock:
            (best,) = classify(self.checkpoint.model, self.checkpoint.variables, card, [pixels[0]], len(card.classes))
            shares = dict(best.top)
            chosen = best.label if target is None else target
            if chosen not in shares:
                raise ValueError(f"no class {chosen!r}")
            drawn = ""
            if self.stage:
                explained = explain_pixels(self.checkpoint, pixels, "grad_cam", chosen, stage=self.stage)
                drawn = pictures.data_uri(pictures.overlay(pixels[0], explained.heatmap[0], channels), SIDE)
            nearest = self._nearest(pixels[0])
        return {
            "top": [{"name": name, "probability": share} for name, share in best.top[:5]],
            "target": chosen,
            "target_probability": shares[chosen],
            "image": pictures.data_uri(pictures.to_rgb(pixels[0], channels), SIDE),
            "map": drawn,
            "stage": self.stage,
            "nearest": nearest,
        }

    def _nearest(self, pixels: np.ndarray) -> list[dict[str, Any]]:
        """Return the nearest training images of a network input, as `answer` does."""
        channels = self.checkpoint.card.preprocess.channels
        return [
            {
                "label": found.label,
                "similarity": found.similarity,
                "file": found.name,
                "image": pictures.data_uri(pictures.to_rgb(found.pixels, channels), THUMBNAIL),
            }
            for found in (self.neighbours.nearest(pixels) if self.neighbours else ())
        ]


class Handler(BaseHTTPRequestHandler):
    """Answers GET / with the page and POST /classify with the classes of the image in the body."""

    timeout = TIMEOUT
    server_version, sys_version = "zoo", ""
    server: "Server"

    def do_GET(self) -> None:
        """Send the page."""
        try:
            self._require_own_host()
            if urlsplit(self.path).path != "/":
                raise RequestError(HTTPStatus.NOT_FOUND, "not found; the page is at /")
        except RequestError as error:
            self._send(error.status, {"error": str(error)})
        else:
            self._send_bytes(HTTPStatus.OK, self.server.classifier.page, "text/html; charset=utf-8")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """Classify the image in the body."""
        try:
            self._require_own_host()
            address = urlsplit(self.path)
            if address.path != "/classify":
                raise RequestError(HTTPStatus.NOT_FOUND, "not found; images are posted to /classify")
            target = parse_qs(address.query, keep_blank_values=True).get("target", [None])[0]
            answer = self.server.classifier.answer(self._body(), target)
        except RequestError as error:
            self._send(error.status, {"error": str(error)})
        except (ValueError, OSError) as error:
            self._send(HTTPStatus.BAD_REQUEST, {"error": error_line(error)})
        else:
            self._send(HTTPStatus.OK, answer)

    def _require_own_host(self) -> None:
        """Refuse other names of this server, and requests from the pages of others."""
        port = self.server.server_address[1]
        hosts = {f"{name}:{port}" for name in (ADDRESS, "localhost")}
        if port == HTTP_PORT:  # which browsers leave out
            hosts |= {ADDRESS, "localhost"}
        if self.headers.get("Host", "") not in hosts:
            raise RequestError(HTTPStatus.FORBIDDEN, "this server answers to its own address only")
        origin = self.headers.get("Origin")
        if origin is not None and origin not in {f"http://{host}" for host in hosts}:
            raise RequestError(HTTPStatus.FORBIDDEN, "this server answers its own page only")

    def _body(self) -> bytes:
        """Read the body of a request, of a known length within the limit."""
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise RequestError(HTTPStatus.LENGTH_REQUIRED, "the request has no Content-Length")
        if int(length) > MAX_BYTES:
            raise RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the file is larger than {MAX_BYTES // 2**20} MB")
        try:
            data = self.rfile.read(int(length))
        except TimeoutError:
            raise RequestError(HTTPStatus.REQUEST_TIMEOUT, "the image did not arrive in time") from None
        if len(data) < int(length):
            raise RequestError(HTTPStatus.BAD_REQUEST, "the image was cut off")
        return data

    def _send(self, status: HTTPStatus, answer: dict[str, Any]) -> None:
        self._send_bytes(status, json.dumps(answer).encode("utf-8"), "application/json")

    def _send_bytes(self, status: HTTPStatus, data: bytes, kind: str) -> None:
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(data)),
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: an address may hold anything."""


class Server(ThreadingHTTPServer):
    """The server of one checkpoint on the loopback interface."""

    daemon_threads = True
    # On Windows it would let two programs share the port.
    allow_reuse_address = os.name != "nt"

    def __init__(self, classifier: Classifier, port: int = 0):
        self.classifier = classifier
        super().__init__((ADDRESS, port), Handler)

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{ADDRESS}:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that leave before they have their answer."""
