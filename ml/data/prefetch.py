"""Batches made in the background while the device works."""

import collections
import itertools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar

Argument = TypeVar("Argument")
Result = TypeVar("Result")

_PATIENCE = 5.0  # seconds that closing waits for threads that are in the middle of something


def prefetched(
    function: Callable[[Argument], Result], arguments: Iterable[Argument], num_workers: int = 1
) -> Iterator[Result]:
    """Yields `function(argument)` for each argument, in order, made by `num_workers` threads ahead of time.

    No more than one result a thread and another one are made or waiting. An exception of the function is raised where
    its result would have been. Without workers each result is made when it is asked for. Closing the generator ends the
    threads; one that hangs, as on a disk that does not answer, is left behind and keeps no process from ending.
    """
    if num_workers == 0:
        yield from map(function, arguments)
        return
    remaining = iter(arguments)
    workers = _Workers(function, num_workers)
    try:
        waiting = collections.deque(map(workers.submit, itertools.islice(remaining, num_workers + 1)))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(map(workers.submit, itertools.islice(remaining, 1)))
            yield result
    finally:
        workers.close()


class _Workers:
    """Daemon threads: those of `concurrent.futures` hold a process until they have finished."""

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
        """Leaves undone what was not begun, and waits a while for what was."""
        self._is_closed = True
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join(_PATIENCE)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None and not self._is_closed:
            argument, future = task
            try:
                future.set_result(self._function(argument))
            except BaseException as error:  # it belongs to whoever waits for the result
                future.set_exception(error)
