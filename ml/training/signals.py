"""Signals as polite requests."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Requests:
    """What somebody asked of the run by a signal."""

    def __init__(self) -> None:
        self.stop: signal.Signals | None = None  # SIGINT or SIGTERM: save and leave
        self.save = False  # SIGUSR1: save and go on

    def receive_stop(self, number: int, frame: FrameType | None) -> None:
        """Notes the first signal; a second Ctrl-C ends the process at once, as if nobody handled it."""
        if self.stop is not None and number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        self.stop = signal.Signals(number)

    def receive_save(self, number: int, frame: FrameType | None) -> None:
        self.save = True


@contextlib.contextmanager
def handled_signals() -> Iterator[Requests]:
    """Notes SIGINT, SIGTERM and SIGUSR1 for as long as the context lasts, then puts the handlers back.

    Outside of the main thread Python delivers no signals, so there is nothing to note.
    """
    requests = Requests()
    if threading.current_thread() is not threading.main_thread():
        yield requests
        return
    handlers = {
        signal.SIGINT: requests.receive_stop,
        signal.SIGTERM: requests.receive_stop,
        signal.SIGUSR1: requests.receive_save,
    }
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield requests
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
