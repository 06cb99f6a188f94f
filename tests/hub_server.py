"""A hub on this machine: what the real `huggingface_hub` client asks of huggingface.co, over HTTP, and what it sent.

Large files go as on the hub: `resolve` redirects to another host (`localhost` in place of `127.0.0.1`), which must not
see the token; uploads are by Git LFS. Xet is not spoken: clients set `HF_HUB_DISABLE_XET=1`.
"""

import base64
import hashlib
import json
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

#: what the hub stores by Git LFS in a model's repository, by its default `.gitattributes`; and whatever is large
LFS_SUFFIXES = (".safetensors", ".onnx", ".onnx_data", ".bin", ".ckpt", ".msgpack", ".pt")
LFS_SIZE = 100_000

_ID = r"(?P<id>[\w.-]+/[\w.-]+)"


@dataclass
class Repository:
    """Commits, and the names of some of them."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)  # branches and tags
    private: bool = False
    gated: bool = False
    card: dict[str, Any] = field(default_factory=dict)  # the front matter of its README.md

    def commit(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Makes these files the state of a branch."""
        content = json.dumps([len(self.commits), {name: digest(data) for name, data in sorted(files.items())}])
        sha = hashlib.sha1(content.encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.refs[branch] = sha
        return sha


class HubServer:
    """The hub; a context manager, whose `endpoint` answers inside of it."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.tokens: dict[str, set[str]] = {}  # token -> the repositories that it may read and write; empty: all
        self.requests: list[tuple[str, str, dict[str, str]]] = []  # method, path without query, headers
        self.sent: Counter[str] = Counter()  # bytes of each file's content that left
        self.objects: dict[str, bytes] = {}  # Git LFS: sha256 -> content
        self.status: int | None = None  # of every answer, when the hub is out of order
        self._breaks: dict[str, tuple[int, bool]] = {}
        self._held: set[str] = set()
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> "HubServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def storage(self) -> str:
        """Where large files lie: another origin."""
        return f"http://localhost:{self._server.server_port}"

    def environment(self, home: Path) -> dict[str, str]:
        """What a client's process needs to find this hub and nothing else."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }

    def serve_client(self, monkeypatch: Any, home: Path) -> None:
        """Lets this process's client talk to this hub, as `environment` does for another process."""
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "ENDPOINT", self.endpoint)
        template = f"{self.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")

    def publish(self, repo_id: str, files: Mapping[str, bytes] | Path, **options: Any) -> Repository:
        """A repository with one commit on `main`; of a folder, all of its files."""
        if isinstance(files, Path):
            files = {str(p.relative_to(files)): p.read_bytes() for p in sorted(files.rglob("*")) if p.is_file()}
        repository = self.repositories.setdefault(repo_id, Repository(**options))
        repository.commit(files)
        return repository

    def break_once(self, name: str, after: int, *, reset: bool = False) -> None:
        """Lets the next transfer of a file end early: closed after some bytes, or reset."""
        self._breaks[name] = (after, reset)

    def hold(self, name: str, after: int) -> None:
        """Lets the next transfer of a file stand still after some bytes, until the client goes away."""
        self.break_once(name, after)
        self._held.add(name)

    def asked(self, method: str, name: str) -> list[dict[str, str]]:
        """The headers of each request whose path ends so."""
        return [headers for kind, path, headers in self.requests if kind == method and path.endswith(name)]

    def take_break(self, name: str) -> tuple[int, bool] | None:
        with self._lock:
            return self._breaks.pop(name, None)

    def take_hold(self, name: str) -> bool:
        with self._lock:
            held = name in self._held
            self._held.discard(name)
            return held


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: HubServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is none of the server's business."""


class _RefusalError(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    @property
    def hub(self) -> HubServer:
        return self.server.hub

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base's name
        """Silent."""

    def do_HEAD(self) -> None:  # the base's name
        self._answer()

    do_GET = do_POST = do_PUT = do_HEAD  # noqa: N815

    def _answer(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = b"".join(self._chunks())
        self.hub.requests.append((self.command, path, {k.lower(): v for k, v in self.headers.items()}))
        try:
            if self.hub.status is not None:
                raise _RefusalError(self.hub.status)
            for command, pattern, method in _ROUTES:
                if self.command in command.split() and (match := re.fullmatch(pattern, url.path)):
                    names = {name: unquote(value) for name, value in match.groupdict().items()}
                    getattr(self, method)(query=parse_qs(url.query), **names)
                    return
            raise _RefusalError(404, message=f"no such route: {self.command} {path}")
        except _RefusalError as refused:
            headers = {"X-Error-Message": refused.message} if refused.message else {}
            headers |= {"X-Error-Code": refused.code} if refused.code else {}
            self._send(json.dumps({"error": refused.message}).encode(), refused.status, headers)

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _send(self, body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(HTTPStatus(status))
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: Any) -> None:
        self._send(json.dumps(value).encode())

    # who asks for what

    def _token(self) -> str | None:
        """The token of the request, which must be known."""
        kind, _, token = (self.headers.get("Authorization") or "").partition(" ")
        if not kind:
            return None
        if token not in self.hub.tokens:
            raise _RefusalError(401, message="Invalid credentials in Authorization header")
        return token

    def _repository(self, repo_id: str, *, contents: bool = True, write: bool = False) -> Repository:
        """A repository that the asker may see; a gated one shows its listing to everybody."""
        token = self._token()
        repository = self.hub.repositories.get(repo_id)
        known = token is not None and (not self.hub.tokens[token] or repo_id in self.hub.tokens[token])
        if repository is None or (repository.private and not known):
            raise _RefusalError(404 if token else 401, "RepoNotFound", "Repository not found")
        if repository.gated and contents and not known:
            message = f"Access to model {repo_id} is restricted and you are not in the authorized list."
            raise _RefusalError(403 if token else 401, "GatedRepo", message)
        if write and not known:
            raise _RefusalError(403, message="You don't have the rights to write to this repository")
        return repository

    def _commit_of(self, repository: Repository, revision: str) -> str:
        sha = repository.refs.get(revision, revision)
        if sha not in repository.commits:
            raise _RefusalError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    # reading

    def model_info(self, id: str, query: dict[str, list[str]], revision: str = "main") -> None:  # noqa: A002
        repository = self._repository(id, contents=False)
        sha = self._commit_of(repository, revision)
        files = repository.commits[sha]
        siblings = [
            {"rfilename": name, **(blob(name, data) if "blobs" in query else {})} for name, data in files.items()
        ]
        self._json(
            {
                "_id": id,
                "id": id,
                "sha": sha,
                "private": repository.private,
                "gated": "auto" if repository.gated else False,
                "cardData": repository.card,
                "siblings": siblings,
                "tags": [],
            }
        )

    def tree(self, id: str, revision: str, query: dict[str, list[str]]) -> None:  # noqa: A002
        repository = self._repository(id)
        files = repository.commits[self._commit_of(repository, revision)]
        entries = []
        for name, data in files.items():
            record = blob(name, data)
            entry = {"type": "file", "path": name, "size": record["size"], "oid": record["blobId"]}
            if "lfs" in record:
                entry["lfs"] = {"oid": record["lfs"]["sha256"], "size": len(data), "pointerSize": 130}
            entries.append(entry)
        self._json(entries)

    def refs(self, id: str, query: dict[str, list[str]]) -> None:  # noqa: A002
        refs = self._repository(id, contents=False).refs.items()
        branches = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha} for name, sha in refs]
        self._json({"branches": branches, "tags": [], "converts": []})

    def resolve(self, id: str, revision: str, name: str, query: dict[str, list[str]]) -> None:  # noqa: A002
        repository = self._repository(id)
        sha = self._commit_of(repository, revision)
        if name not in repository.commits[sha]:
            raise _RefusalError(404, "EntryNotFound", "Entry not found")
        data = repository.commits[sha][name]
        record = blob(name, data)
        headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if "lfs" in record:
            headers |= {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{record["lfs"]["sha256"]}"'}
            headers["Location"] = f"{self.hub.storage}/lfs/{id}/{sha}/{name}"
            self._send(b"", 302, headers)
            return
        self._content(name, data, {**headers, "ETag": f'"{record["blobId"]}"'})

    def storage(self, id: str, sha: str, name: str, query: dict[str, list[str]]) -> None:  # noqa: A002
        if "Authorization" in self.headers:
            raise _RefusalError(400, message="a signed URL takes no token")
        data = self.hub.repositories[id].commits[sha][name]
        self._content(name, data, {"ETag": f'"{digest(data)}"', "Accept-Ranges": "bytes"})

    def _content(self, name: str, data: bytes, headers: dict[str, str]) -> None:
        start, status = 0, 200
        if wanted := self.headers.get("Range"):
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])  # type: ignore[index]
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        part = data[start:]
        if self.command == "HEAD":
            self._send(part, status, headers)
            return
        early = self.hub.take_break(name)
        self.send_response(status)
        for key, value in {"Content-Length": str(len(part)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        part = part if early is None else part[: early[0]]
        self.wfile.write(part)
        self.wfile.flush()
        self.hub.sent[name] += len(part)
        if early is not None:
            self.close_connection = True
            if self.hub.take_hold(name):
                self.connection.recv(1)
            if early[1]:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()

    # writing

    def create(self, query: dict[str, list[str]]) -> None:
        token = self._token()
        if token is None:
            raise _RefusalError(401, message="Invalid username or password.")
        asked = json.loads(self.body)
        repo_id = f"{asked['organization']}/{asked['name']}"
        if self.hub.tokens[token] and repo_id not in self.hub.tokens[token]:
            raise _RefusalError(
                403, message=f"You don't have the rights to create a model under the namespace {asked['organization']}"
            )
        answer = {"url": f"{self.hub.endpoint}/{repo_id}", "name": repo_id}
        if repo_id in self.hub.repositories:
            self._send(json.dumps({**answer, "error": "You already created this model repo"}).encode(), 409)
            return
        repository = self.hub.repositories[repo_id] = Repository(private=asked.get("visibility") == "private")
        repository.commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        self._json(answer)

    def validate_yaml(self, query: dict[str, list[str]]) -> None:
        content = json.loads(self.body)["content"]
        front = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        warnings = [] if front else [{"message": "empty or missing yaml metadata in repo card"}]
        self._json({"errors": [], "warnings": warnings})

    def preupload(self, id: str, revision: str, query: dict[str, list[str]]) -> None:  # noqa: A002
        self._repository(id, write=True)
        files = [
            {
                "path": f["path"],
                "uploadMode": "lfs" if is_large(f["path"], f["size"]) else "regular",
                "shouldIgnore": False,
            }
            for f in json.loads(self.body)["files"]
        ]
        self._json({"files": files})

    def lfs_batch(self, id: str, query: dict[str, list[str]]) -> None:  # noqa: A002
        self._repository(id, write=True)
        objects = []
        for item in json.loads(self.body)["objects"]:
            upload = {"href": f"{self.hub.storage}/upload/{item['oid']}", "header": {}}
            verify = {"href": f"{self.hub.endpoint}/{id}.git/info/lfs/objects/verify"}
            present = item["oid"] in self.hub.objects
            objects.append({**item, **({} if present else {"actions": {"upload": upload, "verify": verify}})})
        self._json({"transfer": "basic", "objects": objects})

    def upload(self, oid: str, query: dict[str, list[str]]) -> None:
        if "Authorization" in self.headers:
            raise _RefusalError(400, message="a signed URL takes no token")
        if digest(self.body) != oid:
            raise _RefusalError(400, message="the content is not that of the hash")
        self.hub.objects[oid] = self.body
        self._json({})

    def verify(self, id: str, query: dict[str, list[str]]) -> None:  # noqa: A002
        if json.loads(self.body)["oid"] not in self.hub.objects:
            raise _RefusalError(404, message="no such object")
        self._json({})

    def commit(self, id: str, revision: str, query: dict[str, list[str]]) -> None:  # noqa: A002
        repository = self._repository(id, write=True)
        files = dict(repository.commits[self._commit_of(repository, revision)])
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        sha = repository.commit(files, revision)
        self._json({"commitUrl": f"{self.hub.endpoint}/{id}/commit/{sha}", "commitOid": sha})


_ROUTES = (
    ("GET", rf"/api/models/{_ID}", "model_info"),
    ("GET", rf"/api/models/{_ID}/revision/(?P<revision>.+)", "model_info"),
    ("GET", rf"/api/models/{_ID}/tree/(?P<revision>.+)", "tree"),
    ("GET", rf"/api/models/{_ID}/refs", "refs"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("POST", rf"/api/models/{_ID}/preupload/(?P<revision>.+)", "preupload"),
    ("POST", rf"/api/models/{_ID}/commit/(?P<revision>.+)", "commit"),
    ("POST", rf"/{_ID}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("POST", rf"/{_ID}\.git/info/lfs/objects/verify", "verify"),
    ("PUT", r"/upload/(?P<oid>\w+)", "upload"),
    ("HEAD GET", rf"/{_ID}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", "resolve"),
    ("HEAD GET", rf"/lfs/{_ID}/(?P<sha>\w+)/(?P<name>.+)", "storage"),
)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def is_large(name: str, size: int) -> bool:
    """Whether the hub stores a file by Git LFS."""
    return name.endswith(LFS_SUFFIXES) or size > LFS_SIZE


def blob(name: str, data: bytes) -> dict[str, Any]:
    """What the hub tells of a file's content."""
    record: dict[str, Any] = {"size": len(data), "blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}
    if is_large(name, len(data)):
        record["lfs"] = {"sha256": digest(data), "size": len(data), "pointerSize": 130}
    return record
