"""The part of the Hugging Face Hub's HTTP interface that its library uses to create, fill and read a repository."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_writer"
READER = "hf_reader"


@dataclass
class Repository:
    """A repository: its commits, oldest first, each a table of files, and names for some of them."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    large: dict[str, bytes] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], message: str = "") -> str:
        sha = hashlib.sha1(f"{len(self.commits)}{message}".encode()).hexdigest()
        self.commits[sha] = files
        self.messages.append(message)
        return sha

    @property
    def head(self) -> str:
        return list(self.commits)[-1]

    def resolve(self, revision: str) -> str | None:
        revision = self.head if revision == "main" else self.tags.get(revision, revision)
        return revision if revision in self.commits else None


class Hub:
    """Repositories by name, and the requests that were made."""

    def __init__(self, large_bytes: int = 10_000):
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.large_bytes = large_bytes  # files of at least this size go to large-file storage
        self.status: dict[str, int] = {}  # part of a path -> status that is answered there
        self.url = ""


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        for part, status in self.hub.status.items():
            if part in path:
                return self._send(status, {"error": "as the test wants"})
        for pattern, method in self.ROUTES:
            if match := re.fullmatch(pattern, f"{self.command} {path}"):
                return method(self, body, **match.groupdict())
        return self._send(404, {"error": f"no such route: {self.command} {path}"})

    def _send(self, status: int, content: object, **headers: object):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def _find(self, name: str, revision: str = "main") -> tuple[Repository, str] | None:
        """Return a repository and a commit, or None after an error was sent."""
        repository = self.hub.repositories.get(name)
        if self._token() not in ("", TOKEN, READER):
            self._send(401, {"error": "Invalid credentials in Authorization header"})
        elif repository is None or (repository.private and not self._token()):
            code = 404 if self._token() else 401
            self._send(code, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        elif repository.commits and (sha := repository.resolve(revision)) is None:
            self._send(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        else:
            return repository, sha if repository.commits else ""
        return None

    def _may_write(self) -> bool:
        if self._token() == TOKEN:
            return True
        self._send(403 if self._token() == READER else 401, {"error": "You don't have the rights"})
        return False

    def create(self, body):
        if not self._may_write():
            return
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'ada'}/{asked['name']}"
        if name in self.hub.repositories:
            return self._send(409, {"error": "You already created this model repo"})
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        repository = self.hub.repositories[name] = Repository(private)
        repository.commit({".gitattributes": b"*.bin filter=lfs\n"}, "initial commit")
        self._send(200, {"url": f"{self.hub.url}/{name}"})

    def _file(self, path: str, data: bytes) -> dict:
        sha256 = hashlib.sha256(data).hexdigest()
        blob = hashlib.sha1(data).hexdigest()
        row = {"size": len(data)}
        if len(data) >= self.hub.large_bytes:
            row["lfs"] = {"sha256": sha256, "oid": sha256, "size": len(data), "pointerSize": 130}
        return {**row, "path": path, "rfilename": path, "blobId": blob, "oid": blob, "type": "file"}

    def info(self, body, name, revision="main"):
        if found := self._find(name, revision):
            repository, sha = found
            files = [self._file(path, data) for path, data in repository.commits[sha].items()]
            self._send(200, {"_id": "1", "id": name, "modelId": name, "sha": sha, "private": repository.private,
                             "siblings": files, "tags": [], "downloads": 0, "likes": 0})  # fmt: skip

    def tree(self, body, name, revision):
        if found := self._find(name, revision):
            repository, sha = found
            self._send(200, [self._file(path, data) for path, data in repository.commits[sha].items()])

    def validate(self, body):
        """Parse the front matter, as the Hub does before it accepts a README.md."""
        try:
            list(yaml.safe_load_all(json.loads(body)["content"].split("---\n")[1]))
        except yaml.YAMLError as error:
            return self._send(400, {"errors": [{"message": str(error)}], "warnings": []})
        self._send(200, {"errors": [], "warnings": []})

    def preupload(self, body, name, revision):
        if self._may_write():
            files = json.loads(body)["files"]
            self._send(200, {"files": [
                {"path": file["path"], "uploadMode": "lfs" if file["size"] >= self.hub.large_bytes else "regular",
                 "shouldIgnore": False, "oid": None} for file in files
            ]})  # fmt: skip

    def batch(self, body, name):
        objects = [
            {"oid": row["oid"], "size": row["size"],
             "actions": {"upload": {"href": f"{self.hub.url}/large/{name}/{row['oid']}"}}}
            for row in json.loads(body)["objects"]
        ]  # fmt: skip
        self._send(200, {"transfer": "basic", "objects": objects})

    def large(self, body, name, oid):
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.repositories[name].large[oid] = body
        self._send(200, {})

    def commit(self, body, name, revision):
        if not (self._may_write() and (found := self._find(name, revision))):
            return
        repository, sha = found
        files, message = dict(repository.commits[sha]), ""
        for line in body.splitlines():
            row = json.loads(line)
            value = row["value"]
            if row["key"] == "header":
                message = value["summary"]
                if value.get("parentCommit") not in (None, sha):
                    return self._send(412, {"error": "A commit has happened since"})
            elif row["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif row["key"] == "lfsFile":
                files[value["path"]] = repository.large[value["oid"]]
            elif row["key"] == "deletedFile":
                del files[value["path"]]
        oid = repository.commit(files, message)
        self._send(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid, "success": True})

    def resolve(self, body, name, revision, path):
        if not (found := self._find(name, revision)):
            return
        repository, sha = found
        data = repository.commits[sha].get(path)
        if data is None:
            return self._send(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
        etag = (hashlib.sha256 if len(data) >= self.hub.large_bytes else hashlib.sha1)(data).hexdigest()
        headers = {"X_Repo_Commit": sha, "ETag": f'"{etag}"', "X_Linked_Size": len(data), "X_Linked_Etag": f'"{etag}"'}
        self._send(200, data, **headers, Content_Length=len(data))

    NAME = r"(?P<name>[^/]+/[^/]+)"
    ROUTES = (
        ("POST /api/repos/create", create),
        ("POST /api/validate-yaml", validate),
        (f"GET /api/models/{NAME}", info),
        (f"GET /api/models/{NAME}/revision/(?P<revision>.+)", info),
        (f"GET /api/models/{NAME}/tree/(?P<revision>[^/]+)", tree),
        (f"POST /api/models/{NAME}/preupload/(?P<revision>.+)", preupload),
        (f"POST /{NAME}.git/info/lfs/objects/batch", batch),
        (f"PUT /large/{NAME}/(?P<oid>[0-9a-f]+)", large),
        (f"POST /api/models/{NAME}/commit/(?P<revision>.+)", commit),
        (f"(?:GET|HEAD) /{NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", resolve),
    )


@contextmanager
def serving(hub: Hub):
    """Serve a hub on a free port of the loopback interface."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
