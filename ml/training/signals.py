"""Signals that request a stop or a checkpoint."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Requests:
    """Requests received as signals.

    Attributes:
        stop: SIGINT or SIGTERM, which requests a checkpoint and the end of the process; None so far.
        save: Whether SIGUSR1 requested a checkpoint.
    """

    def __init__(self) -> None:
        self.stop: signal.Signals | None = None
        self.save = False

    def receive_stop(self, number: int, frame: FrameType | None) -> None:
        """Records a request to stop; a second SIGINT ends the process at once by the default handler."""
        if self.stop is not None and number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        self.stop = signal.Signals(number)

    def receive_save(self, number: int, frame: FrameType | None) -> None:
        """Records a request to save."""
        self.save = True


@contextlib.contextmanager
def handled_signals() -> Iterator[Requests]:
    """Handles SIGINT, SIGTERM and SIGUSR1 inside the context and restores the handlers after it.

    Python delivers signals to the main thread only; other threads receive no requests.
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
