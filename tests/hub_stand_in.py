"""A stand-in for the Hub on this machine: its repositories have revisions, take commits and give files back.

Commits carry all their files in themselves.
"""

import base64
import hashlib
import http.server
import json
import re
import threading
from collections import defaultdict
from contextlib import contextmanager
from urllib.parse import unquote, urlsplit


def digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


class StandIn:
    """The repositories, and the requests that came."""

    def __init__(self):
        self.repositories = defaultdict(dict)  # {"user/name" or "datasets/user/name": {revision: {path: content}}}
        self.created = {}  # the arguments of each repository's creation
        self.requests = []  # (method, path), in order

    def commit_hash(self, repository, revision):
        files = self.repositories[repository][revision]
        return digest(
            json.dumps([repository, {path: digest(content) for path, content in sorted(files.items())}]).encode()
        )

    def files(self, repository, revision):
        """The commit's hash and the files of a branch or of the commit it is at; None if there is none."""
        for branch, files in self.repositories.get(repository, {}).items():
            commit = self.commit_hash(repository, branch)
            if revision in (branch, commit):
                return commit, files
        return None

    def get(self, path):
        """Answer a GET request: (status, headers, body)."""
        json_answer = {"Content-Type": "application/json"}
        if found := re.fullmatch(r"/api/(models|datasets|spaces)/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            kind, name, what, revision = found.groups()
            answer = self.files(name if kind == "models" else f"{kind}/{name}", revision or "main")
            if not answer:
                return 404, {"X-Error-Code": "RevisionNotFound"}, b""
            commit, files = answer
            if what == "tree":
                entries = [
                    {"type": "file", "path": p, "size": len(content), "oid": digest(content)}
                    for p, content in files.items()
                ]
                return 200, json_answer, json.dumps(entries).encode()
            info = {"id": name, "sha": commit, "private": False, "siblings": [{"rfilename": p} for p in files]}
            return 200, json_answer, json.dumps(info).encode()
        if found := re.fullmatch(r"/((?:datasets/|spaces/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repository, revision, name = found.groups()
            answer = self.files(repository, revision)
            if answer and name in answer[1]:
                commit, files = answer
                return 200, {"ETag": f'"{digest(files[name])}"', "X-Repo-Commit": commit}, files[name]
            return 404, {"X-Error-Code": "EntryNotFound", **({"X-Repo-Commit": answer[0]} if answer else {})}, b""
        return 404, {}, b""

    def post(self, path, body):
        """Answer a POST request: (status, answer as JSON)."""
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            request = json.loads(body)
            kind = {"dataset": "datasets/", "space": "spaces/"}.get(request.get("type"), "")
            name = f"{kind}{request['organization'] or 'user'}/{request['name']}"
            if name in self.created:
                return 409, {"error": "You already created this model repo", "url": f"http://127.0.0.1/{name}"}
            self.created[name] = request
            self.repositories[name]["main"] = {".gitattributes": b""}
            return 200, {"url": f"http://127.0.0.1/{name}"}
        found = re.fullmatch(r"/api/(models|datasets|spaces)/([^/]+/[^/]+)/(preupload|commit|branch)/([^/]+)", path)
        kind, name, what, revision = found.groups()
        repository = self.repositories[name if kind == "models" else f"{kind}/{name}"]
        if what == "branch":
            if revision in repository:
                return 409, {"error": "Reference already exists"}
            repository[revision] = dict(repository["main"])
            return 200, {}
        if what == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            return 200, {
                "files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for p in names]
            }
        for line in map(json.loads, body.decode().splitlines()):
            if line["key"] == "file":
                repository[revision][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                del repository[revision][line["value"]["path"]]
        return 200, {"commitUrl": f"http://127.0.0.1/{name}/commit/{'0' * 40}", "commitOid": "0" * 40, "success": True}


def handler_for(hub):
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def answer(self, status, headers, body):
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def requested_path(self):
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path))
            return path

        def do_POST(self):
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, answer = hub.post(self.requested_path(), body)
            self.answer(status, {"Content-Type": "application/json"}, json.dumps(answer).encode())

        def do_GET(self):
            self.answer(*hub.get(self.requested_path()))

        do_HEAD = do_GET

    return Handler


@contextmanager
def stand_in_hub(home):
    """Run a stand-in for the Hub; yields the environment that sends a process there, and the stand-in.

    Args:
        home: folder for the caches of such a process.
    """
    hub = StandIn()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler_for(hub))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    environment = {
        "HF_ENDPOINT": endpoint,
        "HF_TOKEN": "hf_test",
        "HF_HOME": str(home),
        "NO_PROXY": "127.0.0.1",
        "HF_HUB_OFFLINE": "0",
    }
    yield {**environment, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}, hub
    server.shutdown()
