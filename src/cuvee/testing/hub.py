"""A hub of one's own for tests: the few endpoints the hub's client uses, on 127.0.0.1, from memory.

Owns a server thread, its repositories and a record of what was asked. Use it with `HF_ENDPOINT` set to
`endpoint` and `HF_HOME` set to an empty folder. Uploads are taken whole, inside the commit.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, cast
from urllib.parse import unquote, urlsplit


@dataclass(slots=True)
class Repository:
    """Files of a repository by commit, and what its branch names point at."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    messages: list[str] = field(default_factory=list)  # of commits that were uploaded

    def commit(self, revision: str) -> str | None:
        """The commit a revision stands for."""
        return revision if revision in self.commits else self.names.get(revision)


@dataclass(frozen=True, slots=True)
class Request:
    """One request that reached the server."""

    method: str
    path: str
    authorization: str | None
    agent: str | None = None  # what the client says of itself


class LocalHub:
    """A running hub; a context manager.

    >>> with LocalHub() as hub:
    ...     commit = hub.add("owner/name", {"config.json": b"{}"})
    ...     len(commit)
    40
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.served = 0  # bytes of files that were sent
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def endpoint(self) -> str:
        """What `HF_ENDPOINT` must be."""
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    def add(
        self, name: str, files: Mapping[str, bytes], *, revision: str = "main", gated: bool = False
    ) -> str:
        """A new commit with these files, which `revision` then names; returns its hash."""
        commit = _digest(files)
        repository = self.repositories.setdefault(name, Repository())
        repository.commits[commit] = dict(files)
        repository.names[revision] = commit
        repository.gated = gated
        return commit

    def fetched(self) -> list[str]:
        """Paths inside repositories that were downloaded, in order."""
        marks = (
            r.path.split("/resolve/")[1] for r in self.requests if r.method == "GET" and "/resolve/" in r.path
        )
        return [mark.partition("/")[2] for mark in marks]

    def __enter__(self) -> LocalHub:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: LocalHub


class _Handler(BaseHTTPRequestHandler):
    """GET and HEAD of the endpoints; everything else is 404, as on the hub."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._serve(body=True)

    def do_HEAD(self) -> None:
        self._serve(body=False)

    def do_POST(self) -> None:
        """Uploads: make a repository or branch, ask how files travel, commit. Any token may, none may not."""
        path = unquote(urlsplit(self.path).path).strip("/")
        hub = cast(_Server, self.server).hub
        hub.requests.append(self._request(path))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") is None:
            return self._refuse(401, "Unauthorized")
        if path == "api/repos/create":
            return self._create(hub, json.loads(body))
        if path == "api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        owner, name, verb, revision = (path.removeprefix("api/models/").split("/", 3) + [""] * 4)[:4]
        repository = hub.repositories.get(f"{owner}/{name}")
        if repository is None or verb not in ("branch", "preupload", "commit"):
            return self._refuse(404, "RepoNotFound")
        if verb == "branch":
            repository.names.setdefault(revision, repository.names["main"])
            return self._json({})
        if verb == "preupload":
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": file, "uploadMode": "regular", "shouldIgnore": False} for file in files]
            return self._json({"files": modes})
        commit = _commit(repository, revision, [json.loads(line) for line in body.splitlines()])
        return self._json(
            {"commitUrl": f"{hub.endpoint}/{owner}/{name}/commit/{commit}", "commitOid": commit}
        )

    def _create(self, hub: LocalHub, wanted: Mapping[str, Any]) -> None:
        name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        if name in hub.repositories:
            return self._json({"url": f"{hub.endpoint}/{name}"}, 409)
        hub.add(name, {".gitattributes": b""})
        hub.repositories[name].private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        return self._json({"url": f"{hub.endpoint}/{name}"})

    def _request(self, path: str) -> Request:
        return Request(self.command, path, self.headers.get("Authorization"), self.headers.get("User-Agent"))

    def log_message(self, format: str, *args: Any) -> None:
        """Tests look at `LocalHub.requests` instead."""

    def _serve(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        hub = cast(_Server, self.server).hub
        hub.requests.append(self._request(path))
        is_api = path.startswith("api/models/")
        owner, _, rest = path.removeprefix("api/models/").partition("/")
        name, _, tail = rest.partition("/")
        repository = hub.repositories.get(f"{owner}/{name}")
        if repository is None:
            return self._refuse(404, "RepoNotFound")
        verb, _, tail = tail.partition("/")
        if repository.gated and verb == "resolve":
            return self._refuse(403, "GatedRepo")
        revision, inner = _revision(repository, tail) if tail else ("main", "")
        commit = repository.commit(revision)
        if commit is None:
            return self._refuse(404, "RevisionNotFound")
        files = repository.commits[commit]
        if is_api:
            return self._json(
                _listing(files, inner) if verb == "tree" else _info(f"{owner}/{name}", commit, files)
            )
        return self._file(files, inner, commit, body=body)

    def _file(self, files: Mapping[str, bytes], path: str, commit: str, *, body: bool) -> None:
        content = files.get(path)
        if content is None:
            return self._refuse(404, "EntryNotFound", commit)
        first, end = 0, len(content)
        asked = self.headers.get("Range", "")
        if asked.startswith("bytes="):
            start, _, last = asked.removeprefix("bytes=").partition("-")
            first, end = int(start or 0), min(end, int(last) + 1 if last else end)
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{len(content)}")
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", str(end - first))
        self.end_headers()
        if body:
            cast(_Server, self.server).hub.served += end - first
            self.wfile.write(content[first:end])
        return None

    def _json(self, value: Any, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _refuse(self, status: int, code: str, commit: str | None = None) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        if commit is not None:
            self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _digest(files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha1(usedforsecurity=False)
    for path, content in sorted(files.items()):
        digest.update(path.encode() + b"\0" + hashlib.sha256(content).digest())
    return digest.hexdigest()


def _commit(repository: Repository, revision: str, steps: list[dict[str, Any]]) -> str:
    """Apply the lines of an upload to what a branch holds; the new commit."""
    files = dict(repository.commits[repository.names[revision]])
    for step in steps:
        value = step["value"]
        if step["key"] == "header":
            repository.messages.append(value["summary"])
        elif step["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif step["key"] == "deletedFile":
            del files[value["path"]]
    commit = _digest(files)
    repository.commits[commit] = files
    repository.names[revision] = commit
    return commit


def _revision(repository: Repository, tail: str) -> tuple[str, str]:
    """Revision and path of `rev/path`; a known revision may itself hold slashes."""
    known = [*repository.names, *repository.commits]
    found = [revision for revision in known if tail == revision or tail.startswith(f"{revision}/")]
    revision = max(found, key=len) if found else tail.partition("/")[0]
    return revision, tail[len(revision) :].removeprefix("/")


def _info(name: str, commit: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    return {"id": name, "sha": commit, "siblings": [{"rfilename": path} for path in sorted(files)]}


def _listing(files: Mapping[str, bytes], below: str) -> list[dict[str, Any]]:
    prefix = f"{below}/" if below else ""
    return [
        {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha256(content).hexdigest()}
        for path, content in sorted(files.items())
        if path.startswith(prefix)
    ]
