"""Which samplings of the page are running, and how they are stopped."""

import threading
import time

CANCEL_ECHO_SECONDS = 10.0  # gradio reports a cancelled event as failed, sometimes after the next click


class Runs:
    """The events that stop running samplings, one for each session."""

    def __init__(self) -> None:
        self._stops: dict[str, threading.Event] = {}
        self._cancelled_at: dict[str, float] = {}

    def start(self, session: str) -> threading.Event:
        """Remember a run of the session; returns the event that stops it."""
        stop = self._stops[session] = threading.Event()
        return stop

    def end(self, session: str, stop: threading.Event) -> None:
        """Forget a run that has ended, unless the session has started another one."""
        if self._stops.get(session) is stop:
            del self._stops[session]

    def stop(self, session: str) -> None:
        """Stop the run of the session, if it has one."""
        self._cancelled_at[session] = time.monotonic()
        if session in self._stops:
            self._stops[session].set()

    def just_cancelled(self, session: str) -> bool:
        """Whether a failure of the session is the echo of its own cancelling."""
        return time.monotonic() - self._cancelled_at.get(session, float("-inf")) < CANCEL_ECHO_SECONDS

    def __len__(self) -> int:
        return len(self._stops)
