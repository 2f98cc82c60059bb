"""As much of the Hugging Face hub as a push needs, on this machine: it checks the token and keeps what it is sent."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class FakeHub:
    """``files``: of the last commit, by name; large ones come by themselves, as git LFS has it."""

    token: str
    url: str = ""
    created: list[dict[str, Any]] = field(default_factory=list)
    commits: list[str] = field(default_factory=list)  # messages
    files: dict[str, bytes] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)  # by SHA-256

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        """Of one POST."""
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            return {"url": f"{self.url}/{self.created[-1]['organization']}/{self.created[-1]['name']}"}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if "/preupload/" in path:
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = ["lfs" if name.endswith(".safetensors") else "regular" for name in names]
            told = zip(names, modes, strict=True)
            return {"files": [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in told]}
        if path.endswith("/info/lfs/objects/batch"):
            wanted = json.loads(body)["objects"]
            return {
                "transfer": "basic",
                "objects": [
                    item | {"actions": {"upload": {"href": f"{self.url}/objects/{item['oid']}"}}} for item in wanted
                ],
            }
        self._commit([json.loads(line) for line in body.splitlines()])
        repository = path.removeprefix("/api/models/").partition("/commit/")[0]
        return {"commitUrl": f"{self.url}/{repository}/commit/{'c' * 40}", "commitOid": "c" * 40}

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.commits.append(value["summary"])
            elif line["key"] == "lfsFile":
                self.files[value["path"]] = self.objects[value["oid"]]
            else:
                self.files[value["path"]] = base64.b64decode(value["content"])


@contextmanager
def fake_hub(token: str) -> Iterator[FakeHub]:
    """A hub that runs as long as the block."""
    hub = FakeHub(token)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers["Authorization"] != f"Bearer {hub.token}":
                self._send(401, {"error": f"Invalid credentials: {self.headers['Authorization']}"})
            else:
                self._send(200, hub.answer(self.path, body))

        def do_GET(self) -> None:
            self._send(401, {"error": "Invalid credentials"})

        def do_PUT(self) -> None:
            hub.objects[self.path.rpartition("/")[2]] = self.rfile.read(int(self.headers["Content-Length"]))
            self._send(200, {})

        def _send(self, status: int, answer: dict[str, Any]) -> None:
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            """Nothing: a test's output is its own."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
