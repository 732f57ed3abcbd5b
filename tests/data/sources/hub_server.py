"""A server with the part of the Hub's API that reading a dataset takes; the Hub itself is out of reach of tests."""

import hashlib
import json
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer(ThreadingHTTPServer):
    """Serves one dataset; the files are its main branch."""

    def __init__(self, repo: str, files: Mapping[str, bytes]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repo = repo
        self.files = files

    @property
    def endpoint(self) -> str:
        """For HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: HubServer

    def do_GET(self) -> None:
        path = urlparse(self.path).path
        api = f"/api/datasets/{self.server.repo}"
        file = path.removeprefix(f"/datasets/{self.server.repo}/resolve/").partition("/")[2]
        if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            self._json({"_id": "1", "id": self.server.repo, "sha": COMMIT, "siblings": self._siblings(), "tags": []})
        elif path.startswith(f"{api}/tree/"):
            under = path.removeprefix(f"{api}/tree/{COMMIT}").strip("/")
            self._json(self._tree(f"{under}/" if under else "", "recursive=true" in self.path.lower()))
        elif path.startswith("/datasets/") and file in self.server.files:
            self._answer(200, self.server.files[file], {"ETag": f'"{self._oid(file)}"', "X-Repo-Commit": COMMIT})
        else:
            known = path.startswith((api, f"/datasets/{self.server.repo}/"))
            code = "EntryNotFound" if known and "resolve" in path else "RevisionNotFound" if known else "RepoNotFound"
            self._answer(404, b"{}", {"X-Error-Code": code})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        wanted = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["paths"]
        folders = [{"type": "directory", "path": name, "oid": ""} for name in wanted if self._tree(f"{name}/", True)]
        self._json(folders + [self._entry(name) for name in self.server.files if name in wanted])

    def log_message(self, *_: object) -> None:
        pass

    def _siblings(self) -> list[dict[str, str]]:
        return [{"rfilename": name} for name in self.server.files]

    def _tree(self, under: str, recursive: bool) -> list[dict[str, object]]:
        names = [name for name in self.server.files if name.startswith(under)]
        folders = {under + name.removeprefix(under).split("/")[0] for name in names} - {*names}
        shown = [name for name in names if recursive or "/" not in name.removeprefix(under)]
        return [{"type": "directory", "path": name, "oid": ""} for name in folders] + [*map(self._entry, shown)]

    def _entry(self, name: str) -> dict[str, object]:
        return {"type": "file", "path": name, "size": len(self.server.files[name]), "oid": self._oid(name)}

    def _oid(self, name: str) -> str:
        return hashlib.sha1(self.server.files[name]).hexdigest()

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
