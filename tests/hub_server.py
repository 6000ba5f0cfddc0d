# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""A Hub of model repositories in memory, on this machine only: what uploads and downloads use of its protocol."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


TOKEN = "hf_test"
USER = "me"


class Repository:
    """Commits of `{path: content}`, and the branches that point at them."""

    def __init__(self):
        self.commits: dict[str, dict[str, bytes]] = {}
        self.branches: dict[str, str] = {}
        self.commit("main", {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        content = sorted((path, tag_of(path, content)) for path, content in files.items())
        name = hashlib.sha1(f"{len(self.commits)} {content}".encode()).hexdigest()
        self.commits[name], self.branches[branch] = files, name
        return name

    def find(self, revision: str) -> str | None:
        """The commit that a branch or a commit's name means."""
        name = self.branches.get(revision, revision)
        return name if name in self.commits else None


class HubServer:
    """
    A running server; use it in a `with` statement.

    Attributes:
        url: For `HF_ENDPOINT`.
        repositories: By name.
    """

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self.server.shutdown()
        self.server.server_close()

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """What a repository holds, without what the Hub itself put there."""
        repository = self.repositories[name]
        files = repository.commits[repository.find(revision)]
        return {path: content for path, content in files.items() if path != ".gitattributes"}


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".bin", ".pt", ".pth", ".png"))


def tag_of(path: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if is_large(path) else git_hash(content)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *arguments) -> None:
        pass

    def answer(self, status: int, content: object = None, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content or {}).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str, commit: str | None = None) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": code}
        self.answer(status, {"error": code}, headers | ({"X-Repo-Commit": commit} if commit else {}))

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def route(self) -> None:
        path, body = urlsplit(self.path).path, self.read_body()
        with self.hub.lock:
            if path == "/api/validate-yaml":
                return self.answer(200, {"errors": [], "warnings": []})
            if self.command in ("POST", "PUT") and not path.startswith("/blobs/"):
                if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    return self.refuse(401, "Unauthorized")
            if path == "/api/whoami-v2":
                return self.answer(200, {"type": "user", "name": USER, "orgs": []})
            if path == "/api/repos/create":
                return self.create(json.loads(body))
            if found := re.fullmatch(r"/blobs/(\w+)", path):
                assert hashlib.sha256(body).hexdigest() == found[1]
                self.hub.blobs[found[1]] = body
                return self.answer(200)
            for pattern, handle in (
                (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self.announce_blobs),
                (r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", self.choose_modes),
                (r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", self.commit),
                (r"/api/models/([^/]+/[^/]+)/branch/([^/]+)", self.branch),
                (r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?", self.list_files),
                (r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", self.describe),
                (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.send_file),
            ):
                if found := re.fullmatch(pattern, path):
                    name, *rest = (unquote(part) if part else part for part in found.groups())
                    if name not in self.hub.repositories:
                        return self.refuse(404, "RepoNotFound")
                    return handle(self.hub.repositories[name], name, body, *rest)
        return self.refuse(404, f"NoRoute {self.command} {path}")

    do_GET = do_HEAD = do_POST = do_PUT = route

    # ---- what routes do ---------------------------------------------------------------------------------------------

    def create(self, asked: dict) -> None:
        name = f"{asked.get('organization') or USER}/{asked['name']}"
        known = name in self.hub.repositories
        self.hub.repositories.setdefault(name, Repository())
        self.answer(409 if known else 200, {"url": f"{self.hub.url}/{name}", "name": name})

    def announce_blobs(self, repository: Repository, name: str, body: bytes) -> None:
        objects = []
        for blob in json.loads(body)["objects"]:
            actions = {"upload": {"href": f"{self.hub.url}/blobs/{blob['oid']}"}}
            objects.append({**blob, **({} if blob["oid"] in self.hub.blobs else {"actions": actions})})
        self.answer(200, {"transfer": "basic", "objects": objects})

    def choose_modes(self, repository: Repository, name: str, body: bytes, revision: str) -> None:
        present = repository.commits[repository.find(revision)]
        files = []
        for asked in json.loads(body)["files"]:
            path = asked["path"]
            known = {"oid": tag_of(path, present[path])} if path in present else {}
            mode = "lfs" if is_large(path) else "regular"
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **known})
        self.answer(200, {"files": files})

    def commit(self, repository: Repository, name: str, body: bytes, branch: str) -> None:
        files = dict(repository.commits[repository.find(branch)])
        for entry in map(json.loads, body.splitlines()):
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        commit = repository.commit(branch, files)
        self.answer(200, {"commitOid": commit, "commitUrl": f"{self.hub.url}/{name}/commit/{commit}"})

    def branch(self, repository: Repository, name: str, body: bytes, branch: str) -> None:
        if branch in repository.branches:
            return self.refuse(409, "ReferenceExists")
        repository.branches[branch] = repository.branches["main"]
        return self.answer(200)

    def list_files(self, repository: Repository, name: str, body: bytes, revision: str, folder: str | None) -> None:
        files = repository.commits[repository.find(revision)]
        listed = [
            {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
            for path, content in sorted(files.items())
            if not folder or path.startswith(f"{folder}/")
        ]
        if folder and not listed:
            return self.refuse(404, "EntryNotFound")
        return self.answer(200, listed)

    def describe(self, repository: Repository, name: str, body: bytes, revision: str | None) -> None:
        commit = repository.find(revision or "main")
        if commit is None:
            return self.refuse(404, "RevisionNotFound")
        files = [{"rfilename": path} for path in sorted(repository.commits[commit])]
        about = {"id": name, "modelId": name, "sha": commit, "siblings": files, "tags": [], "private": False}
        return self.answer(200, about)

    def send_file(self, repository: Repository, name: str, body: bytes, revision: str, path: str) -> None:
        commit = repository.find(revision)
        if commit is None:
            return self.refuse(404, "RevisionNotFound")
        content = repository.commits[commit].get(path)
        if content is None:
            return self.refuse(404, "EntryNotFound", commit)
        tag = f'"{tag_of(path, content)}"'
        headers = {"ETag": tag, "X-Repo-Commit": commit, "Content-Type": "application/octet-stream"}
        if is_large(path):
            headers |= {"X-Linked-Etag": tag, "X-Linked-Size": str(len(content))}
        return self.answer(200, content, headers)
