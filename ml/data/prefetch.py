"""Background threads that prepare batches while the device computes."""

import collections
import itertools
import queue
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from typing import Generic, TypeVar

Argument = TypeVar("Argument")
Result = TypeVar("Result")

_CLOSE_TIMEOUT = 5.0  # seconds that closing waits for running calls


def prefetched(
    function: Callable[[Argument], Result], arguments: Iterable[Argument], num_workers: int = 1
) -> Generator[Result, None, None]:
    """Yields `function(argument)` for each argument, in order, computed ahead of time by `num_workers` threads.

    At most `num_workers + 1` results are pending or ready at a time. Closing the generator stops the threads; a thread
    that hangs, as on a disk that does not respond, is abandoned after a few seconds and does not keep the process
    alive.

    Args:
        function: Computes one result; called from several threads.
        arguments: Arguments of the calls, read lazily.
        num_workers: Number of threads; 0 computes each result on request, in the calling thread.

    Raises:
        Exception: Any exception of `function`, in the position of its result.
    """
    if num_workers == 0:
        yield from map(function, arguments)
        return
    remaining = iter(arguments)
    workers = _Workers(function, num_workers)
    try:
        waiting: collections.deque[Future[Result]] = collections.deque(
            map(workers.submit, itertools.islice(remaining, num_workers + 1))
        )
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(map(workers.submit, itertools.islice(remaining, 1)))
            yield result
    finally:
        workers.close()


class _Workers(Generic[Argument, Result]):
    """Pool of daemon threads; those of `concurrent.futures` keep a process alive until they finish."""

    def __init__(self, function: Callable[[Argument], Result], num_workers: int):
        self._function = function
        self._tasks: queue.SimpleQueue[tuple[Argument, Future[Result]] | None] = queue.SimpleQueue()
        self._is_closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"data-{number}", daemon=True) for number in range(num_workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, argument: Argument) -> "Future[Result]":
        future: Future[Result] = Future()
        self._tasks.put((argument, future))
        return future

    def close(self) -> None:
        """Cancels pending tasks, and waits a few seconds for running ones."""
        self._is_closed = True
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join(_CLOSE_TIMEOUT)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None and not self._is_closed:
            argument, future = task
            try:
                future.set_result(self._function(argument))
            except BaseException as error:  # raised again where the result is read
                future.set_exception(error)
