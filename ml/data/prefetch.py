"""Batches made in the background while the device works."""

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Argument = TypeVar("Argument")
Result = TypeVar("Result")


def prefetched(
    function: Callable[[Argument], Result], arguments: Iterable[Argument], depth: int = 2
) -> Iterator[Result]:
    """Yields `function(argument)` for each argument, in order, made by one other thread up to `depth` ahead.

    An exception of the function is raised where its result would have been. Closing the generator ends the thread.
    """
    remaining = iter(arguments)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="data") as pool:
        pending = collections.deque(pool.submit(function, item) for item in itertools.islice(remaining, depth))
        try:
            while pending:
                result = pending.popleft().result()
                pending.extend(pool.submit(function, item) for item in itertools.islice(remaining, 1))
                yield result
        finally:
            pool.shutdown(cancel_futures=True)
