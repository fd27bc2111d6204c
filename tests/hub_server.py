"""A Hugging Face Hub on the loopback interface, so that tests push and load without a network.

A repository is a history of trees, `commit -> {path: content}`; a branch is a name for a commit.
An endpoint is a row of `ROUTES`: methods, who may call, a pattern, and a function of that history.
`hub.env` is the environment of a client, which must be a new process: ours, less its settings of
the Hub, plus this server's address, the token and an empty cache.

    with HubServer(token="hf_test") as hub:
        subprocess.run([sys.executable, "push.py"], env=hub.env, check=True)
        assert "README.md" in hub.repos["model", "user/name"].files
        assert "POST /api/models/user/name/commit/main" in hub.requests

Modelled: repositories of models, data sets and Spaces, private too; commits of regular and LFS
files, and of deletions; info, tree, download (whole, ranges, headers only) at a branch or commit;
the token. Not modelled: users, pull requests, xet, uploads in parts, redirects, validity of cards,
rate limits.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from base64 import b64decode
from collections.abc import Callable, Mapping
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit


class Refusal(Exception):
    """Status, message, code: clients turn the code into the exception that they raise."""


def blob(content: bytes) -> dict[str, object]:
    """How a listing names a file. A zero byte near its start makes it binary, so kept by LFS."""
    plain = {"oid": sha1(b"blob %d\0" % len(content) + content).hexdigest(), "size": len(content)}
    large = {"oid": sha256(content).hexdigest(), "size": len(content)}
    return large | {"lfs": large | {"pointerSize": 130}} if b"\0" in content[:512] else plain


class Repo:
    """A history of trees; `files` is the one at the tip of main."""

    def __init__(self, files: dict[str, bytes] | None = None, private: bool = False) -> None:
        self.private, self.refs, self.history = private, {"main": ""}, {}
        self.commit("main", files or {})

    @property
    def files(self) -> dict[str, bytes]:
        return self.at("main")[1]

    def at(self, revision: str) -> tuple[str, dict[str, bytes]]:
        sha = self.refs.get(revision, revision)
        if sha not in self.history:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha, self.history[sha]

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        lines = [self.refs[branch], *(f"{path} {blob(files[path])}" for path in sorted(files))]
        sha = sha1("\n".join(lines).encode()).hexdigest()
        self.history[sha], self.refs[branch] = dict(files), sha
        return sha


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes: do not wait between them

    def _serve(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            with self.server.lock:
                answer = self._route(urlsplit(self.path).path)
        except Refusal as refusal:
            status, message, code = refusal.args
            answer = {"error": message}, status, {"X-Error-Message": message, "X-Error-Code": code}
        value, status, headers = answer if isinstance(answer, tuple) else (answer, 200, {})
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def log_message(self, *message: object) -> None: ...

    def _route(self, path: str) -> object:
        self.server.requests.append(f"{self.command} {path}")
        for methods, access, pattern, endpoint in ROUTES:
            if self.command in methods and (match := re.fullmatch(pattern, path)):
                args = {name: unquote(part) for name, part in match.groupdict().items() if part}
                self._admit(access, args.pop("kind", "model"), args.pop("name", None))
                return endpoint(self, **args)
        raise Refusal(404, f"Not modelled: {self.command} {path}", "")

    def _admit(self, access: str, kind: str, name: str | None) -> None:
        sent = self.headers["Authorization"]
        if sent != f"Bearer {self.server.token}" and (sent or access == "token"):
            raise Refusal(401, "Invalid credentials in Authorization header", "")
        self.name, self.repo = name, self.server.repos.get((kind, name))
        if name and (self.repo is None or self.repo.private and not sent):
            raise Refusal(404 if sent else 401, "Repository not found", "RepoNotFound")

    def _asked(self) -> tuple[str, str, bool]:
        ask = json.loads(self.body)
        owner, private = ask["organization"] or self.server.user, ask.get("private", False)
        private = private or ask.get("visibility") == "private"
        return ask.get("type") or "model", f"{owner}/{ask['name']}", private

    def create(self) -> object:
        kind, name, private = self._asked()
        status = 409 if (kind, name) in self.server.repos else 200
        self.server.repos.setdefault((kind, name), Repo(private=private))
        place = name if kind == "model" else f"{kind}s/{name}"
        return {"url": f"{self.server.url}/{place}"}, status, {}

    def delete(self) -> object:
        if self.server.repos.pop(self._asked()[:2], None) is None:
            raise Refusal(404, "Repository not found", "RepoNotFound")
        return {}

    def info(self, rev: str = "main") -> object:
        sha, files = self.repo.at(rev)
        about = {"id": self.name, "private": self.repo.private, "tags": [], "sha": sha}
        return about | {"siblings": [{"rfilename": path} for path in sorted(files)]}

    def tree(self, rev: str, path: str = "") -> object:
        sha, files = self.repo.at(rev)
        root, entries = PurePosixPath(path), {}
        for file in map(PurePosixPath, sorted(files)):
            for up in file.parents:
                entries[up] = {"type": "directory", "path": str(up), "oid": sha}
            entries[file] = {"type": "file", "path": str(file)} | blob(files[str(file)])
        if path and root not in entries:
            raise Refusal(404, f"{path} does not exist", "EntryNotFound")
        depth = None if "recursive=true" in self.path.lower() else 1
        return [entry for at, entry in entries.items() if root in list(at.parents)[:depth]]

    def download(self, rev: str, path: str) -> object:
        sha, files = self.repo.at(rev)
        if path not in files:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        content, size, tag = files[path], len(files[path]), blob(files[path])["oid"]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{tag}"', "Accept-Ranges": "bytes"}
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if part is None:
            return content, 200, headers
        start, stop = int(part[1]), min(int(part[2] or size) + 1, size)
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        return content[start:stop], 206 if start < stop else 416, headers

    def preupload(self, rev: str) -> object:
        (_, files), plan = self.repo.at(rev), []
        for file in json.loads(self.body)["files"]:
            mode = "lfs" if "lfs" in blob(b64decode(file["sample"])) else "regular"
            oid = blob(files[file["path"]])["oid"] if file["path"] in files else None
            plan.append(file | {"uploadMode": mode, "oid": oid, "shouldIgnore": False})
        return {"files": plan}

    def batch(self) -> object:
        actions = {"actions": {"upload": {"href": f"{self.server.url}/uploads"}}}
        return {"objects": [large | actions for large in json.loads(self.body)["objects"]]}

    def upload(self) -> object:
        self.server.uploads[sha256(self.body).hexdigest()] = self.body
        return {}

    def commit(self, rev: str) -> object:
        files = dict(self.repo.at(rev)[1])
        for operation in map(json.loads, self.body.splitlines()[1:]):  # the first is the message
            match operation:
                case {"key": "file", "value": {"path": path, "content": content}}:
                    files[path] = b64decode(content)
                case {"key": "lfsFile", "value": {"path": path, "oid": oid}}:
                    files[path] = self.server.uploads[oid]
                case {"key": "deletedFile", "value": {"path": path}}:
                    files.pop(path, None)
                case {"key": "deletedFolder", "value": {"path": path}}:
                    files = {name: files[name] for name in files if not name.startswith(path)}
        sha = self.repo.commit(rev, files)
        return {"commitOid": sha, "commitUrl": f"{self.server.url}/{self.name}/commit/{sha}"}


API = "/api/(?P<kind>model|dataset|space)s/(?P<name>[^/]+/[^/]+)"
WEB = "/((?P<kind>dataset|space)s/)?(?P<name>[^/]+/[^/]+?)"
REV, PATH = "/(?P<rev>[^/]+)", "/(?P<path>.+)"
ROUTES = [
    ("GET", "token", "/api/whoami-v2", lambda call: {"type": "user", "name": call.server.user}),
    ("POST", "anyone", "/api/validate-yaml", lambda call: {"errors": [], "warnings": []}),
    ("POST", "token", "/api/repos/create", _Handler.create),
    ("DELETE", "token", "/api/repos/delete", _Handler.delete),
    ("GET", "anyone", f"{API}(/revision{REV})?", _Handler.info),
    ("GET", "anyone", f"{API}/tree{REV}({PATH})?", _Handler.tree),
    ("GET HEAD", "anyone", f"{WEB}/resolve{REV}{PATH}", _Handler.download),
    ("POST", "token", f"{API}/preupload{REV}", _Handler.preupload),
    ("POST", "token", f"{WEB}.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", "anyone", "/uploads", _Handler.upload),
    ("POST", "token", f"{API}/commit{REV}", _Handler.commit),
]


class HubServer(ThreadingHTTPServer):
    def __init__(self, token: str = "hf_test", user: str = "user") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.token, self.user, self.lock = token, user, threading.Lock()
        self.repos: dict[tuple[str, str], Repo] = {}
        self.uploads, self.requests = {}, []
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.home = tempfile.TemporaryDirectory(prefix="hf_home_")
        theirs = re.compile("(HF|HUGGINGFACE|TRANSFORMERS|DIFFUSERS)_.*|.*_proxy", re.IGNORECASE)
        self.env = {name: v for name, v in os.environ.items() if not theirs.fullmatch(name)}
        self.env |= {"HF_ENDPOINT": self.url, "HF_TOKEN": token, "HF_HOME": self.home.name}
        self.env |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def __exit__(self, *exception: object) -> None:
        self.shutdown()
        self.server_close()
        self.home.cleanup()


def run(client: Callable[[], Any], env: Mapping[str, str]) -> Any:
    """Return what a function of a test file returns in a process of its own, by way of JSON."""
    module = client.__module__
    code = f"import json, {module} as t; print(json.dumps(t.{client.__name__}()))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
