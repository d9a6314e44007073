"""Which samplings of the page are running, and how they are stopped."""

import threading


class Runs:
    """The events that stop running samplings, one for each session."""

    def __init__(self) -> None:
        self._stops: dict[str, threading.Event] = {}

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
        if session in self._stops:
            self._stops[session].set()

    def __len__(self) -> int:
        return len(self._stops)
