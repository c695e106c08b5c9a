"""A model hub on this machine that speaks as much of Hugging Face's protocol as pushing and pulling one model needs."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "a" * 40


class Hub:
    """Repositories by name, each its files by name."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []
        """Method and path of every request."""


@contextmanager
def hub() -> Iterator[tuple[str, Hub]]:
    """The address of a running hub, and what it holds."""
    held = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *words: object) -> None:
            held.asked.append(f"{self.command} {urlsplit(self.path).path}")

        def answer(self, content: bytes | object, status: int = 200, **headers: str) -> None:
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = unquote(urlsplit(self.path).path)
            if path == "/api/repos/create":
                wanted = json.loads(body)
                name = "/".join(n for n in (wanted.get("organization"), wanted["name"]) if n)
                held.repos.setdefault(name, {})
                return self.answer({"url": f"http://{self.headers['Host']}/{name}", "id": name})
            if path == "/api/validate-yaml":
                return self.answer({"errors": [], "warnings": []})
            found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path)
            if found is None or found[1] not in held.repos:
                return self.answer({"error": "not found"}, 404, X_Error_Code="RepoNotFound")
            if found[2] == "preupload":
                files = json.loads(body)["files"]
                return self.answer({"files": [f | {"uploadMode": "regular", "shouldIgnore": False} for f in files]})
            for line in body.splitlines():
                change = json.loads(line)
                value = change["value"]
                if change["key"] == "file":
                    held.repos[found[1]][value["path"]] = base64.b64decode(value["content"])
                elif change["key"] == "deletedFile":
                    del held.repos[found[1]][value["path"]]
            url = f"http://{self.headers['Host']}/{found[1]}/commit/{COMMIT}"
            return self.answer({"commitUrl": url, "commitOid": COMMIT, "hookOutput": "", "success": True})

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            resolved = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
            listed = re.fullmatch(r"/api/models/([^/]+/[^/]+)(/tree/[^/]+|/revision/[^/]+)?", path)
            if resolved and (content := held.repos.get(resolved[1], {}).get(resolved[2])) is not None:
                etag = f'"{hashlib.sha1(content).hexdigest()}"'
                return self.answer(content, ETag=etag, X_Repo_Commit=COMMIT)
            if listed is None or listed[1] not in held.repos:
                return self.answer({"error": "not found"}, 404, X_Error_Code="RepoNotFound")
            files = held.repos[listed[1]]
            if listed[2] and listed[2].startswith("/tree"):
                rows = [{"type": "file", "path": n, "size": len(c), "oid": COMMIT} for n, c in files.items()]
                return self.answer(rows)
            siblings = [{"rfilename": n, "size": len(c)} for n, c in files.items()]
            return self.answer({"id": listed[1], "modelId": listed[1], "sha": COMMIT, "siblings": siblings, "tags": []})

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", held
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
