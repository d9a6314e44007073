"""Limits of what a request may bring, and the removal of uploaded files."""

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class RequestLimit:
    """ASGI middleware: answers 413 to a request with a large body, before or while the body is read.

    Args:
        app: the application behind it.
        max_bytes: the largest body that is let through.
        uploads: what counts the running uploads.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, uploads: "Uploads"):
        self.app = app
        self.max_bytes = max_bytes
        self.uploads = uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        received, refused = 0, False

        async def refuse() -> None:
            nonlocal refused
            if refused:
                return
            refused = True
            text = f"The request has more than {self.max_bytes // 2**20} MiB.".encode()
            headers = [
                (b"content-type", b"text/plain"),
                (b"content-length", str(len(text)).encode()),
                (b"connection", b"close"),
            ]
            await send({"type": "http.response.start", "status": 413, "headers": headers})
            await send({"type": "http.response.body", "body": text})

        async def limited_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                await refuse()
                return {"type": "http.disconnect"}
            return message

        async def send_unless_refused(message: Message) -> None:
            if not refused:
                await send(message)

        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self.max_bytes:
            return await refuse()
        if scope["path"].rstrip("/").endswith("/upload"):
            with self.uploads.running():
                await self.app(scope, limited_receive, send_unless_refused)
        else:
            await self.app(scope, limited_receive, send_unless_refused)


class Uploads(set[str]):
    """Gradio's set of uploaded files, which also counts the uploads of each: equal files share one path.

    A file is removed when each of its uploads has been used, and while no upload is running that may be of that file.
    """

    def __init__(self) -> None:
        super().__init__()
        self._unused: Counter[str] = Counter()  # uploads of a path that no request has used yet
        self._used: set[str] = set()  # paths that at least one request has used
        self._running = 0
        self._lock = threading.Lock()

    def update(self, *sources: Iterable[str]) -> None:
        """Gradio has saved uploads at these paths."""
        with self._lock:
            for source in sources:
                paths = list(source)
                self._unused.update(paths)
                super().update(paths)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count an upload as running inside the context."""
        with self._lock:
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1
                self._remove_used()

    def done(self, path: str) -> None:
        """A request has used the file."""
        with self._lock:
            self._unused[path] -= 1
            self._used.add(path)
            self._remove_used()

    def _remove_used(self) -> None:
        if self._running:
            return
        for path in [path for path in self._used if self._unused[path] <= 0]:
            self._used.discard(path)
            self._unused.pop(path)
            self.discard(path)
            Path(path).unlink(missing_ok=True)
            with suppress(OSError):  # the folder may hold other files
                Path(path).parent.rmdir()
