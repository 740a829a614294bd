"""A small hub on loopback: as much of the Hugging Face hub's HTTP API as models and data are loaded and uploaded by.

Found by the libraries through HF_ENDPOINT, which they read when they are imported. Files are kept in memory and small:
each is uploaded as part of its commit, none through the store for large files.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml
from hub_content import USERS, Repository, blob_hash, commit_hash

Answer = tuple[int, dict[str, str], bytes]


class Hub:
    """The repositories by kind and name ("models/Qwen/Qwen2-0.5B"), and what was asked for."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.broken: set[str] = set()  # repositories to which uploads fail
        self.read_only: set[str] = set()  # repositories to which nobody may write
        self.is_mirror = False  # nobody can be asked who may read what
        self.is_gone = False  # connections are closed without an answer
        self.lock = threading.RLock()
        self.url = ""

    def add(self, name: str, folder: Path, **access: bool) -> Repository:
        """Publishes a folder, files of folders in it too."""
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        self.repositories[name] = Repository(branches={"main": [("", files)]}, **access)
        return self.repositories[name]

    def answer(self, method: str, path: str, token: str | None, body: bytes) -> Answer:
        """What the hub says."""
        with self.lock:
            self.requests.append(f"{method} {path}")
            if token is not None and token not in USERS:
                return error(401, "Invalid credentials in Authorization header")
            for pattern, handler in ROUTES:
                found = re.fullmatch(pattern, path)
                if found:
                    try:
                        return handler(self, USERS.get(token or ""), body, **found.groupdict())
                    except Refused as refusal:
                        return refusal.answer
            return error(404, f"no such page: {path}")

    def find(self, kind: str, name: str, user: Any, content: bool = True, write: bool = False) -> Repository:
        """A repository; Refused if this user may not have it."""
        repository = self.repositories.get(f"{kind}/{name}")
        owners = [user["name"], *(one["name"] for one in user["orgs"])] if user else []
        is_owner = name.split("/")[0] in owners
        if repository is None or (repository.private and not is_owner):
            raise Refused(404 if user else 401, "Repository not found", "RepoNotFound")
        if repository.gated and content and not is_owner:
            raise Refused(403 if user else 401, f"Access to {name} is restricted", "GatedRepo")
        if write and not (is_owner and user["role"] == "write" and name not in self.read_only):
            raise Refused(403, "You have no write access to this repository")
        return repository

    def files(self, kind: str, name: str, user: Any, revision: str | None, **rights: bool) -> dict[str, bytes]:
        """What a repository holds at a revision; Refused if this user may not have it, or there is none."""
        files = self.find(kind, name, user, **rights).files(revision or "main")
        if files is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return files


class Refused(Exception):
    """An answer that is a no."""

    def __init__(self, *words: Any) -> None:
        self.answer = error(*words)


def error(status: int, message: str, code: str | None = None) -> Answer:
    headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return status, headers, json.dumps({"error": message}).encode()


def reply(content: Any, status: int = 200) -> Answer:
    return status, {"Content-Type": "application/json"}, json.dumps(content).encode()


def whoami(hub: Hub, user: Any, body: bytes) -> Answer:
    if user is None:
        return error(401, "Invalid username or password.")
    access = {"type": "access_token", "accessToken": {"displayName": "test", "role": user["role"]}}
    return reply({"type": "user", "name": user["name"], "orgs": user["orgs"], "auth": access})


def create(hub: Hub, user: Any, body: bytes) -> Answer:
    asked = json.loads(body)
    owner = asked.get("organization") or (user or {}).get("name")
    if user is None or user["role"] != "write" or owner not in [user["name"], *(one["name"] for one in user["orgs"])]:
        return error(403, "You don't have the rights to create a model under this namespace")
    name = f"{owner}/{asked['name']}"
    known = f"models/{name}" in hub.repositories
    private = asked.get("visibility") == "private" or bool(asked.get("private"))
    hub.repositories.setdefault(f"models/{name}", Repository(private=private))
    said = {"url": f"{hub.url}/{name}", "name": name}
    return reply(said | ({"error": "You already created this model repo"} if known else {}), 409 if known else 200)


def check_card(hub: Hub, user: Any, body: bytes) -> Answer:
    found = re.match(r"---\n(.*?)\n---\n", json.loads(body)["content"], re.DOTALL)
    problems = [] if found else [{"message": "empty or missing yaml metadata in repo card"}]
    metadata = yaml.safe_load(found[1]) if found else {}
    for key in ("base_model", "library_name", "pipeline_tag", "license"):
        if key in metadata and not re.fullmatch(r"[\w./-]+", str(metadata[key])):
            problems.append({"message": f'"{key}" is not valid'})
    for key in ("tags", "datasets"):
        if not all(isinstance(one, str) for one in metadata.get(key, [])):
            problems.append({"message": f'"{key}" must be a list of strings'})
    return reply({"errors": problems, "warnings": []}, 400 if problems else 200)


def about(hub: Hub, user: Any, body: bytes, kind: str, name: str, revision: str | None = None) -> Answer:
    files = hub.files(kind, name, user, revision, content=False)
    repository = hub.repositories[f"{kind}/{name}"]
    known = {"id": name, "private": repository.private, "gated": repository.gated, "sha": commit_hash(files)}
    siblings = [{"rfilename": path} for path in sorted(files)]
    return reply(known | {"siblings": siblings, "tags": [], "downloads": 0, "likes": 0, "disabled": False})


def access(hub: Hub, user: Any, body: bytes, kind: str, name: str, write: str | None) -> Answer:
    if hub.is_mirror:
        return error(404, "no such page")
    hub.find(kind, name, user, write=write is not None)
    return reply({})


def entries(files: dict[str, bytes], folder: str, recursive: bool) -> Iterator[dict[str, Any]]:
    folders = set()
    for path, content in sorted(files.items()):
        if not path.startswith(folder):
            continue
        parts = path[len(folder) :].split("/")
        for depth in range(1, len(parts) if recursive else min(2, len(parts))):
            parent = folder + "/".join(parts[:depth])
            if parent not in folders:
                folders.add(parent)
                yield {"type": "directory", "path": parent, "oid": "0" * 40, "size": 0}
        if recursive or len(parts) == 1:
            yield {"type": "file", "path": path, "size": len(content), "oid": blob_hash(content)}


def tree(hub: Hub, user: Any, body: bytes, kind: str, name: str, revision: str, folder: str, query: str) -> Answer:
    files = hub.files(kind, name, user, revision, content=False)
    found = list(entries(files, f"{folder}/" if folder else "", "recursive=true" in query.lower()))
    return reply(found) if found or not folder else error(404, f"{folder} does not exist", "EntryNotFound")


def paths_info(hub: Hub, user: Any, body: bytes, kind: str, name: str, revision: str) -> Answer:
    paths = json.loads(body)["paths"]
    files = hub.files(kind, name, user, revision, content=False)
    return reply([entry for entry in entries(files, "", recursive=True) if entry["path"] in paths])


def resolve(hub: Hub, user: Any, body: bytes, kind: str | None, name: str, revision: str, path: str) -> Answer:
    files = hub.files(kind or "models", name, user, revision)
    at = {"X-Repo-Commit": commit_hash(files)}
    if path not in files:
        status, headers, content = error(404, "Entry not found", "EntryNotFound")
        return status, headers | at, content
    there = f"/api/resolve-cache/{kind or 'models'}/{name}/{commit_hash(files)}/{path}"
    return 307, at | {"ETag": f'"{blob_hash(files[path])}"', "Location": there}, b""


def content(hub: Hub, user: Any, body: bytes, kind: str, name: str, revision: str, path: str) -> Answer:
    files = hub.files(kind, name, user, revision)
    headers = {"X-Repo-Commit": commit_hash(files), "ETag": f'"{blob_hash(files[path])}"'}
    return 200, headers | {"Content-Type": "application/octet-stream"}, files[path]


def branch(hub: Hub, user: Any, body: bytes, kind: str, name: str, revision: str) -> Answer:
    repository = hub.find(kind, name, user, write=True)
    if revision in repository.branches:
        return error(409, f"Reference already exists: {revision}")
    repository.branches[revision] = repository.branches["main"][-1:]
    return reply({}, 201)


def preupload(hub: Hub, user: Any, body: bytes, kind: str, name: str, revision: str) -> Answer:
    known = hub.files(kind, name, user, revision, write=True)
    if name in hub.broken:
        return error(418, "no uploads today")
    paths = [file["path"] for file in json.loads(body)["files"]]
    oids = {path: blob_hash(known[path]) for path in paths if path in known}
    told = [{"path": path, "uploadMode": "regular", "shouldIgnore": False, "oid": oids.get(path)} for path in paths]
    return reply({"files": told})


def commit(hub: Hub, user: Any, body: bytes, kind: str, name: str, revision: str) -> Answer:
    files, message = dict(hub.files(kind, name, user, revision, write=True)), ""
    for line in body.splitlines():
        item = json.loads(line)
        value = item["value"]
        if item["key"] == "header":
            message = value["summary"]
        elif item["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif item["key"] == "deletedFile":
            del files[value["path"]]
    hub.repositories[f"{kind}/{name}"].branches[revision].append((message, files))
    where = f"{hub.url}/{name}/commit/{commit_hash(files)}"
    return reply({"commitUrl": where, "commitOid": commit_hash(files), "hookOutput": "", "success": True})


REPO = r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)"
ROUTES: list[tuple[str, Any]] = [
    (r"/api/whoami-v2", whoami),
    (r"/api/repos/create", create),
    (r"/api/validate-yaml", check_card),
    (REPO, about),
    (REPO + r"/revision/(?P<revision>[^/]+)", about),
    (REPO + r"/auth-check(?P<write>/write)?", access),
    (REPO + r"/tree/(?P<revision>[^/?]+)/?(?P<folder>[^?]*)(?P<query>\?.*)", tree),
    (REPO + r"/paths-info/(?P<revision>[^/]+)", paths_info),
    (REPO + r"/branch/(?P<revision>[^/]+)", branch),
    (REPO + r"/preupload/(?P<revision>[^/]+)", preupload),
    (REPO + r"/commit/(?P<revision>[^/]+)", commit),
    (r"/(?:(?P<kind>datasets)/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", resolve),
    (r"/api/resolve-cache/(?P<kind>\w+)/(?P<name>[^/]+/[^/]+)/(?P<revision>[^/]+)/(?P<path>.+)", content),
]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        parts = urlsplit(self.path)
        path = unquote(parts.path) + (f"?{parts.query}" if "/tree/" in parts.path else "")
        if self.hub.is_gone:
            self.close_connection = True
            return
        status, headers, content = self.hub.answer(self.command, path, token, body)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = _serve

    def log_message(self, *words: object) -> None:
        pass


@contextlib.contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub, for as long as the context lasts; its address is `url`."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
