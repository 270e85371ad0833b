"""Encodes tasks, in this process or in several, and gives the results in the order of the tasks."""

import collections
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field

import numpy as np

from ml.data.preparation.cutting import Task
from ml.data.preparation.pieces import Findings, Reading, Text
from ml.data.tokenizers import Tokenizer
from ml.errors import RunFailure

_AHEAD = 2  # tasks that wait for each process
_SECONDS_BETWEEN_LOOKS = 0.5


@dataclass(frozen=True)
class Stream:
    """Tokens of one part, (tokens,), behind which of them documents end, (documents,), and the bytes of their text.

    Tokens behind the last end are of a document that goes on in the next task.
    """

    tokens: np.ndarray = field(repr=False)
    ends: np.ndarray = field(repr=False)
    num_bytes: int


@dataclass(frozen=True)
class Encoded:
    """What became of a task: the tokens of each part of the output, and what was left out or replaced."""

    streams: dict[int, Stream]
    findings: Findings


@dataclass(frozen=True)
class Encoder:
    """Makes tokens of tasks."""

    tokenizer: Tokenizer
    reading: Reading

    def __call__(self, task: Task) -> Encoded:
        """The tokens of a task.

        Raises:
            DataError: Its text cannot be read as asked.
        """
        findings = Findings()
        texts: dict[int, list[Text]] = {}
        for piece in task.pieces:
            for text in piece.texts(self.reading, findings):
                texts.setdefault(text.part, []).append(text)
        return Encoded({part: self._stream(of_part) for part, of_part in texts.items()}, findings)

    def _stream(self, texts: list[Text]) -> Stream:
        end = self.tokenizer.end_of_document
        end_token = np.array([] if end is None else [end], np.min_scalar_type(self.tokenizer.vocab_size - 1))
        arrays, ends, num_tokens = [], [], 0
        encoded = self.tokenizer.encode_batch([text.content for text in texts])
        for text, tokens in zip(texts, encoded, strict=True):
            arrays += [tokens, end_token] if text.ends_document else [tokens]
            num_tokens += len(tokens)
            if text.ends_document:
                num_tokens += len(end_token)
                ends.append(num_tokens)
        num_bytes = sum(len(text.content.encode()) for text in texts)
        return Stream(np.concatenate(arrays), np.array(ends, np.int64), num_bytes)


def encoded(tasks: Iterable[Task], encoder: Encoder, num_workers: int) -> Iterator[tuple[Task, Encoded]]:
    """Each task with what became of it, in order, made by `num_workers` processes; one is this process itself.

    Raises:
        DataError: A task cannot be encoded; raised where its result would have been.
        RunFailure: One of the processes was killed.
    """
    if num_workers == 1:
        yield from ((task, encoder(task)) for task in tasks)
        return
    remaining = iter(tasks)
    pending: collections.deque[tuple[Task, Future[Encoded]]] = collections.deque()
    with _processes(encoder, num_workers) as submit:
        try:
            while True:
                while len(pending) < _AHEAD * num_workers and (task := next(remaining, None)) is not None:
                    pending.append((task, submit(task)))
                if not pending:
                    return
                task, future = pending.popleft()
                yield task, future.result()
        except BrokenProcessPool:
            raise RunFailure(
                "a process that encodes was killed; where memory is short, fewer --num_workers need less of it. The "
                "same command goes on from what is there"
            ) from None


@contextlib.contextmanager
def _processes(encoder: Encoder, num_workers: int) -> Iterator[Callable[[Task], Future[Encoded]]]:
    """What hands tasks to processes, which have the encoder with all that it has read.

    They are forked, which takes milliseconds, where a new interpreter would take seconds to import what it needs.
    """
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    # One thread each; the library also takes a fork after threads for a mistake unless this is set.
    with _environment("TOKENIZERS_PARALLELISM", "false"):
        pool = ProcessPoolExecutor(
            num_workers, multiprocessing.get_context(method), _begin_process, (encoder, os.getpid())
        )
        try:
            yield lambda task: pool.submit(_encode, task)
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


_encoder: Encoder | None = None  # of a process that encodes


def _begin_process(encoder: Encoder, parent: int) -> None:
    global _encoder
    _encoder = encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the first one ends them
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """Ends this process when its parent is gone, were it killed: nobody else would."""
    while os.getppid() == parent:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os._exit(1)


def _encode(task: Task) -> Encoded:
    assert _encoder is not None
    return _encoder(task)
