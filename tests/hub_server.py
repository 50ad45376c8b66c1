"""A Hugging Face hub on this machine: the part of its HTTP interface that huggingface_hub downloads by."""

import contextlib
import json
import re
import threading
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock
from urllib.parse import unquote, urlsplit

from huggingface_hub import constants

ASKED = re.compile(
    r"/api/(?P<kind>model|dataset)s/(?P<repo>[^/]+/[^/]+)(?:/(?P<what>revision|tree)/(?P<at>[^/]+))?"
)
FILE = re.compile(r"/(?P<data>datasets/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<at>[^/]+)/(?P<path>.+)")
# Files that the hub stores apart, and answers for with another address
LARGE = (".safetensors", ".gguf", ".parquet", ".bin")


@dataclass
class Repository:
    """commits: commit -> {path: bytes}. revisions: branch or tag -> commit. gated: only with the token."""

    gated: bool = False
    commits: dict = field(default_factory=dict)
    revisions: dict = field(default_factory=dict)


@dataclass
class Hub:
    """The repositories of one server, by (kind, ORG/NAME).

    requests: what it was asked, as (method, path). sent: the paths of the files whose content it sent.
    """

    endpoint: str = ""
    token: str = "hf_of_the_test"
    repositories: dict = field(default_factory=dict)
    requests: list = field(default_factory=list)
    sent: list = field(default_factory=list)

    def push(self, repo, files, *, kind="model", revision="main", gated=False):
        """Commit {path: bytes or str}, or a folder's files, in place of all that was there: -> the commit."""
        if isinstance(files, Path):
            files = {path.name: path.read_bytes() for path in files.iterdir()}
        files = {p: t.encode() if isinstance(t, str) else t for p, t in files.items()}
        found = self.repositories.setdefault((kind, repo), Repository(gated))
        commit = sha1(repr((repo, revision, len(found.commits))).encode()).hexdigest()
        found.commits[commit], found.revisions[revision] = files, commit
        return commit

    def asked(self):
        """The paths of the files that were asked for, content or not."""
        found = [FILE.fullmatch(path) for _, path in self.requests]
        return {parts["path"] for parts in found if parts}


class Handler(BaseHTTPRequestHandler):
    """Answers a request. `hub` is set by served_hub."""

    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        path = urlsplit(self.path).path
        self.hub.requests.append((self.command, unquote(path)))
        if path.startswith("/stored/"):
            self._stored(path.rpartition("/")[2])
        elif found := ASKED.fullmatch(path):
            self._about(found)
        elif found := FILE.fullmatch(path):
            self._file(found)
        else:
            self._refuse(404, "RepoNotFound")

    def do_HEAD(self):
        self.do_GET()

    def log_message(self, *_):
        pass

    def _commit(self, kind, found):
        """(repository, commit) that a request is for; None after a refusal."""
        repository = self.hub.repositories.get((kind, found["repo"]))
        if repository is None:
            # As the hub does for who is not logged in: the name may be private
            return self._refuse(401, "RepoNotFound")
        at = unquote(found["at"] or "main")
        commit = repository.revisions.get(at, at)
        if commit not in repository.commits:
            return self._refuse(404, "RevisionNotFound")
        return repository, commit

    def _about(self, found):
        place = self._commit(found["kind"], found)
        if place is None:
            return
        files = place[0].commits[place[1]]
        if found["what"] == "tree":
            self._answer(200, json.dumps([_entry(*file) for file in sorted(files.items())]))
            return
        about = {"id": found["repo"], "sha": place[1], "private": False, "tags": []}
        about |= {"downloads": 0, "siblings": [{"rfilename": path} for path in files]}
        self._answer(200, json.dumps(about))

    def _file(self, found):
        place = self._commit("dataset" if found["data"] else "model", found)
        if place is None:
            return
        (repository, commit), path = place, unquote(found["path"])
        if repository.gated and self.headers["Authorization"] != f"Bearer {self.hub.token}":
            status = 403 if self.headers["Authorization"] else 401
            self._refuse(status, "GatedRepo")
        elif path not in repository.commits[commit]:
            self._refuse(404, "EntryNotFound", **{"X-Repo-Commit": commit})
        else:
            self._content(commit, path, repository.commits[commit][path])

    def _content(self, commit, path, data):
        about = {"X-Repo-Commit": commit, "ETag": f'"{_digest(path, data)}"'}
        if not path.endswith(LARGE):
            self._send(path, data, **about)
            return
        about |= {"X-Linked-Etag": about["ETag"], "X-Linked-Size": str(len(data))}
        # As on the hub it is another host, to which a client must not send the token
        host = self.hub.endpoint.replace("127.0.0.1", "localhost")
        self._answer(302, b"", Location=f"{host}/stored/{_digest(path, data)}", **about)

    def _stored(self, digest):
        commits = [c for r in self.hub.repositories.values() for c in r.commits.values()]
        files = {_digest(*file): file for commit in commits for file in commit.items()}
        self._send(*files[digest], ETag=f'"{digest}"')

    def _send(self, path, data, **headers):
        if self.command == "GET":
            self.hub.sent.append(path)
        self._answer(200, data, **headers)

    def _refuse(self, status, code, **headers):
        self._answer(status, json.dumps({"error": code}), **{"X-Error-Code": code}, **headers)

    def _answer(self, status, content, **headers):
        data = content.encode() if isinstance(content, str) else content
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if span and status == 200:
            end = min(int(span[2] or len(data)), len(data) - 1)
            headers["Content-Range"] = f"bytes {span[1]}-{end}/{len(data)}"
            status, data = 206, data[int(span[1]) : end + 1]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _digest(path, data):
    """The ETag of a file: of a large one sha256, of others git's sha1."""
    if path.endswith(LARGE):
        return sha256(data).hexdigest()
    return sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def _entry(path, data):
    entry = {"type": "file", "path": path, "size": len(data), "oid": sha1(data).hexdigest()}
    if path.endswith(LARGE):
        entry["lfs"] = {"oid": _digest(path, data), "size": len(data), "pointerSize": 134}
    return entry


@contextlib.contextmanager
def served_hub():
    """Yield a Hub that is served until the block ends."""
    hub = Hub()
    handler = type("HubHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def variables(hub: Hub, home: Path, **more):
    """The environment variables of a process that has this hub, its cache in a folder, and no token."""
    wanted = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    return wanted | {"HF_TOKEN": "", "HF_HUB_DISABLE_TELEMETRY": "1"} | more


@contextlib.contextmanager
def used_here(hub: Hub, home: Path, offline: bool = False):
    """Let huggingface_hub in this process, which has read its environment, use a hub and a cache."""
    wanted = {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_HUB_OFFLINE": offline,
        "HF_TOKEN_PATH": str(home / "token"),
    }
    with mock.patch.multiple(constants, **wanted), mock.patch.dict("os.environ", HF_TOKEN=""):
        yield
