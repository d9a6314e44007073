"""Limits of what a request may bring, and the removal of what uploads leave on disk."""

from collections import Counter
from pathlib import Path


class RequestLimit:
    """ASGI middleware: a request with a larger body is answered 413, before or while it is read."""

    def __init__(self, app, max_bytes: int):
        self.app = app
        self.max_bytes = max_bytes

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
                headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(text)).encode()), (b"connection", b"close")]
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

        await self.app(scope, limited_receive, send_unless_refused)


class Uploads(set):
    """Gradio's set of uploaded files, which counts how often each was uploaded: equal files share one path.

    `done` removes a file when each of its uploads has been used, so that requests with equal files do not take it from one another.
    """

    def __init__(self):
        super().__init__()
        self.waiting = Counter()

    def update(self, paths):
        paths = list(paths)
        self.waiting.update(paths)
        super().update(paths)

    def done(self, path: str) -> None:
        """One request has used the file."""
        self.waiting[path] -= 1
        if self.waiting[path] <= 0:
            del self.waiting[path]
            self.discard(path)
            Path(path).unlink(missing_ok=True)
            if not any(Path(path).parent.iterdir()):
                Path(path).parent.rmdir()
