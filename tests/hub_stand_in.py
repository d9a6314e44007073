"""A local stand-in of the Hub that takes uploads, every file in the commit itself."""

import base64
import http.server
import json
import threading
from contextlib import contextmanager


def handler_for(repository, received):
    class Hub(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_POST(self):
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            answer = {"url": f"http://127.0.0.1/{repository}", "errors": [], "warnings": []}
            if "/preupload/" in self.path:
                names = [file["path"] for file in json.loads(body)["files"]]
                answer = {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for name in names]}
            elif "/commit/" in self.path:
                kind = "" if repository.startswith("datasets/") else "models/"
                assert self.path.startswith(f"/api/{kind}{repository}/commit/main")
                for line in map(json.loads, body.decode().splitlines()):
                    if line["key"] == "file":
                        received[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                answer = {"commitUrl": f"http://127.0.0.1/{repository}/commit/{'0' * 40}", "commitOid": "0" * 40, "success": True}
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            listing = b"[]" if "/tree/" in self.path else b""
            self.send_response(200 if listing else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(listing)))
            self.end_headers()
            self.wfile.write(listing)

    return Hub


@contextmanager
def upload_hub(repository, home):
    """Yield the environment that sends a process there, and the files it will have received; `repository`: "user/name" or "datasets/user/name"."""
    received = {}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler_for(repository, received))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    yield {"HF_ENDPOINT": endpoint, "HF_TOKEN": "hf_test", "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", "HF_HUB_OFFLINE": "0"}, received
    server.shutdown()
