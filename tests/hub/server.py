"""A hub on loopback: tiny repositories for the real clients of the Hugging Face hub."""

import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Files = dict[str, bytes]
TOKEN = "hf_TheTokenOfTheTests"


@dataclass
class Repository:
    """Commits and the branches and tags that lead to them.

    Args:
        gated: its files need `TOKEN`.
        hidden: the hub says that there is none, except to `TOKEN`.
    """

    gated: bool = False
    hidden: bool = False
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Files] = field(default_factory=dict)

    def commit(self, files: Files, *refs: str) -> str:
        """Add a commit, to which `refs` lead from now on."""
        text = b"".join(name.encode() + content for name, content in sorted(files.items()))
        number = hashlib.sha1(text).hexdigest()
        self.commits[number] = files
        self.refs |= dict.fromkeys(refs, number)
        return number


class Hub(ThreadingHTTPServer):
    """Serves repositories by kind (`models`, `datasets`) and name.

    Attributes:
        cut: a file whose name ends so breaks off after half of it.
        status: in place of every answer.
        silent: every connection is closed without an answer.
        asked: path of each request.
        after: called with the path of each request, after the answer.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.reset()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def reset(self) -> None:
        """Answer everything again."""
        self.cut: str | None = None
        self.status: int | None = None
        self.silent = False
        self.asked: list[str] = []
        self.after: Callable[[str], None] = lambda path: None

    def add(self, kind: str, name: str, **options: Any) -> Repository:
        """Add an empty repository."""
        return self.repositories.setdefault((kind, name), Repository(**options))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        hub, url = self.server, urlsplit(self.path)
        hub.asked.append(f"{self.command} {self.path}")
        if hub.silent:
            self.close_connection = True
            return
        if hub.status is not None:
            self._answer(hub.status, b"{}", {"X-Error-Message": f"{self.headers['Authorization']}"})
            return
        path = unquote(url.path)
        api = re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(.+))?", path)
        file = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/(.+)", path)
        if api:
            self._api(api[1], api[2], api[3] or "revision/main", parse_qs(url.query))
        elif file:
            self._file("datasets" if file[1] else "models", file[2], file[3])
        else:
            self._answer(404, b"{}")
        hub.after(path)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        json_text = "json" in self.headers.get("Content-Type", "")
        self._fields = json.loads(content) if json_text else parse_qs(content)
        self.do_GET()

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, code: str, status: int = 404) -> None:
        self._answer(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def _find(self, kind: str, name: str) -> Repository | None:
        repository = self.server.repositories.get((kind, name))
        return (
            None if repository is None or (repository.hidden and not self._known()) else repository
        )

    def _known(self) -> bool:
        return self.headers["Authorization"] == f"Bearer {TOKEN}"

    def _commit(self, repository: Repository, rest: str) -> tuple[str, str] | None:
        """Split `revision/path` into the commit and the path."""
        for revision in sorted([*repository.refs, *repository.commits], key=len, reverse=True):
            if rest == revision or rest.startswith(f"{revision}/"):
                return repository.refs.get(revision, revision), rest[len(revision) + 1 :]
        return None

    def _api(self, kind: str, name: str, rest: str, query: dict[str, list[str]]) -> None:
        repository = self._find(kind, name)
        if repository is None:
            return self._refuse(
                "RepoNotFound", 401 if self.headers["Authorization"] is None else 404
            )
        if rest == "auth-check":
            if repository.gated and not self._known():
                return self._refuse("GatedRepo", 403)
            return self._answer(200, b"{}")
        what, _, rest = rest.partition("/")
        found = self._commit(repository, rest)
        if found is None:
            return self._refuse("RevisionNotFound")
        commit, path = found
        files = repository.commits[commit]
        if what == "revision":
            body: Any = {
                "_id": "1",
                "id": name,
                "sha": commit,
                "private": False,
                "disabled": False,
                "gated": "manual" if repository.gated else False,
                "downloads": 1,
                "likes": 0,
                "tags": [],
                "cardData": {},
                "createdAt": "2026-01-01T00:00:00.000Z",
                "siblings": [{"rfilename": file} for file in files],
            }
        elif what == "tree":
            deep = query.get("recursive", ["false"])[0].lower() in ("true", "1")
            body = _tree(files, path, deep)
            if path and not body:
                return self._refuse("EntryNotFound")
        elif what == "paths-info":
            every = {entry["path"]: entry for entry in _tree(files, "", True)}
            body = [every[path] for path in self._fields["paths"] if path in every]
        else:
            return self._answer(404, b"{}")
        return self._answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _file(self, kind: str, name: str, rest: str) -> None:
        repository = self._find(kind, name)
        if repository is None:
            return self._refuse(
                "RepoNotFound", 401 if self.headers["Authorization"] is None else 404
            )
        if repository.gated and not self._known():
            return self._refuse("GatedRepo", 403 if self.headers["Authorization"] else 401)
        found = self._commit(repository, rest)
        if found is None:
            return self._refuse("RevisionNotFound")
        commit, path = found
        content = repository.commits[commit].get(path)
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if content is None:
            return self._answer(404, b"{}", {**headers, "X-Error-Code": "EntryNotFound"})
        headers["ETag"] = f'"{hashlib.sha1(content).hexdigest()}"'
        start = int(re.findall(r"\d+", self.headers.get("Range", "bytes=0-"))[0])
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut = self.server.cut
        if cut and path.endswith(cut) and self.command == "GET":
            self._answer(200, b"", {**headers, "Content-Length": str(len(content))})
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return None
        return self._answer(206 if start else 200, content[start:], headers)


def _tree(files: Files, folder: str, deep: bool) -> list[dict[str, Any]]:
    """List what is below a folder, as the hub does."""
    inside = f"{folder}/" if folder else ""
    entries = {}
    for name, content in files.items():
        parts = name.removeprefix(inside).split("/") if name.startswith(inside) else []
        for depth in range(1, len(parts) + 1 if deep else min(len(parts), 1) + 1):
            path = inside + "/".join(parts[:depth])
            oid = hashlib.sha1(content).hexdigest()
            entry = {"type": "file", "path": path, "oid": oid, "size": len(content)}
            if depth < len(parts):
                entry |= {"type": "directory", "size": 0, "oid": "0" * 40}
            entries[path] = entry
    return list(entries.values())
