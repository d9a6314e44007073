"""Limits of what a request may bring, and the removal of what uploads leave on disk."""

import threading
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path


class RequestLimit:
    """ASGI middleware: a request with a larger body is answered 413, before or while it is read."""

    def __init__(self, app, max_bytes: int, uploads: "Uploads"):
        self.app = app
        self.max_bytes = max_bytes
        self.uploads = uploads

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        told = dict(scope["headers"]).get(b"content-length", b"0")
        received, refused = int(told) if told.isdigit() else 0, False

        async def refuse():
            nonlocal refused
            if not refused:
                refused = True
                text = f"The request has more than {self.max_bytes // 2**20} MiB.".encode()
                headers = [
                    (b"content-type", b"text/plain"),
                    (b"content-length", str(len(text)).encode()),
                    (b"connection", b"close"),
                ]
                await send({"type": "http.response.start", "status": 413, "headers": headers})
                await send({"type": "http.response.body", "body": text})

        if received > self.max_bytes:
            return await refuse()
        received = 0

        async def limited_receive():
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                await refuse()
                return {"type": "http.disconnect"}
            return message

        async def send_unless_refused(message):
            if not refused:
                await send(message)

        if scope["path"].rstrip("/").endswith("/upload"):
            with self.uploads.running():
                await self.app(scope, limited_receive, send_unless_refused)
        else:
            await self.app(scope, limited_receive, send_unless_refused)


class Uploads(set):
    """Gradio's set of uploaded files, which counts how often each was uploaded: equal files share one path.

    A file is removed when each of its uploads has been used, and no upload is running that may be of the same file.
    """

    def __init__(self):
        super().__init__()
        self._waiting = Counter()  # uploads of a path not yet used
        self._used = set()
        self._running = 0
        self._lock = threading.Lock()

    def update(self, paths):
        paths = list(paths)
        with self._lock:
            self._waiting.update(paths)
            super().update(paths)

    @contextmanager
    def running(self):
        """Around the handling of an upload."""
        with self._lock:
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1
                self._remove()

    def done(self, path: str) -> None:
        """A request has used the file."""
        with self._lock:
            self._waiting[path] -= 1
            self._used.add(path)
            self._remove()

    def _remove(self):
        if self._running:
            return
        for path in [path for path in self._used if self._waiting[path] <= 0]:
            self._used.discard(path)
            self._waiting.pop(path)
            self.discard(path)
            Path(path).unlink(missing_ok=True)
            with suppress(OSError):  # other files lie there
                Path(path).parent.rmdir()
