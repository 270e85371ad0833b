"""Signals that request a stop or a checkpoint."""

import contextlib
import ctypes
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_IGNORED_BY_PARENTS = (signal.SIGINT, signal.SIGHUP)  # by a shell for a command in the background, and by nohup
_STANDARD_ERROR = 2
_ANSWER = "{}: the current step is completed and a checkpoint is saved"
_OF_CTRL_C = "; Ctrl-C again ends the process now, without a checkpoint"


class Requests:
    """Requests received as signals.

    Attributes:
        stop: SIGINT, SIGTERM or SIGHUP, which requests a checkpoint and the end of the process; None so far.
        save: Whether SIGUSR1 requested a checkpoint.
    """

    def __init__(self) -> None:
        self.stop: signal.Signals | None = None
        self.save = False

    def receive_stop(self, number: int, frame: FrameType | None) -> None:
        """Records a request to stop."""
        self.stop = signal.Signals(number)

    def receive_save(self, number: int, frame: FrameType | None) -> None:
        """Records a request to save."""
        self.save = True


@contextlib.contextmanager
def handled_signals(*, answers: bool = True) -> Iterator[Requests]:
    """Handles SIGINT, SIGTERM, SIGHUP and SIGUSR1 inside the context and restores the handlers after it.

    A request to stop is answered on standard error at once, and a second SIGINT ends the process, also while the main
    thread computes. SIGINT and SIGHUP stay ignored where the process was started so. Python delivers signals to the
    main thread only; other threads receive no requests.

    Args:
        answers: Whether this process prints the answers.
    """
    requests = Requests()
    if threading.current_thread() is not threading.main_thread():
        yield requests
        return
    ignored = [number for number in _IGNORED_BY_PARENTS if signal.getsignal(number) == signal.SIG_IGN]
    stopping = [number for number in _STOPPING if number not in ignored]
    handlers = dict.fromkeys(stopping, requests.receive_stop) | {signal.SIGUSR1: requests.receive_save}
    with _answered(answers=answers):
        previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield requests
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _answered(*, answers: bool) -> Iterator[None]:
    """Answers signals from a thread: the handlers of Python run only between operations of the main thread."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    thread = threading.Thread(target=_answer, args=(reader, answers), name="signals", daemon=True)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)  # receives the number of each signal
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)
        thread.join()
        os.close(reader)


def _answer(reader: int, answers: bool) -> None:
    is_stopping = False
    while numbers := os.read(reader, 64):
        for number in filter(_STOPPING.__contains__, numbers):
            if is_stopping and number == signal.SIGINT:
                _end_by_default(number)
            if not is_stopping and answers:
                name = "stopping" if number == signal.SIGINT else f"stopping on {signal.Signals(number).name}"
                _say(_ANSWER.format(name) + (_OF_CTRL_C if number == signal.SIGINT else ""))
            is_stopping = True


def _say(message: str) -> None:
    with contextlib.suppress(OSError):  # the terminal is gone after SIGHUP
        os.write(_STANDARD_ERROR, f"\n{message}\n".encode())


def _forget_writer() -> None:
    """Detaches a forked process: Ctrl-C reaches it too, and its signals are not those of its parent."""
    with contextlib.suppress(ValueError):
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_forget_writer)


def _end_by_default(number: int) -> None:
    """Ends the process by a signal; `signal.signal` works in the main thread only, which may be computing."""
    ctypes.pythonapi.PyOS_setsig(ctypes.c_int(number), ctypes.c_void_p(None))  # SIG_DFL
    os.kill(os.getpid(), number)
