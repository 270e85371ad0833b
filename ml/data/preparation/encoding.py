"""Encodes tasks, in this process or in workers, and yields the results in order."""

import collections
import contextlib
import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ml.data.errors import DataError
from ml.data.preparation.cutting import Task
from ml.data.preparation.pieces import Text
from ml.data.reading.options import Findings, Reading
from ml.data.tokenizers import Tokenizer
from ml.errors import RunFailure, UserError

Work = TypeVar("Work")
Result = TypeVar("Result")

_ENCODED_AT_ONCE = 2**17
_AHEAD = 2  # pending tasks for each worker
_SECONDS_BETWEEN_CHECKS = 0.5


@dataclass(frozen=True)
class Stream:
    """Tokens of one split.

    Attributes:
        tokens: (tokens,). Tokens after the last end belong to a document that continues in the next task.
        ends: Position after the last token of each document, (documents,).
        num_bytes: UTF-8 bytes of the text.
    """

    tokens: np.ndarray = field(repr=False)
    ends: np.ndarray = field(repr=False)
    num_bytes: int


@dataclass(frozen=True)
class Encoded:
    """Result of a task.

    Attributes:
        streams: Tokens of each split.
        findings: Text that was skipped or replaced.
    """

    streams: dict[int, Stream]
    findings: Findings


@dataclass(frozen=True)
class Encoder:
    """Encodes tasks.

    Attributes:
        tokenizer: Tokenizer of the text.
        reading: Options of reading.
    """

    tokenizer: Tokenizer
    reading: Reading

    def __call__(self, task: Task) -> Encoded:
        """Encodes a task.

        Raises:
            DataError: Its text cannot be read with these options.
        """
        findings = Findings()
        texts: dict[int, list[Text]] = {}
        for piece in task.pieces:
            for text in piece.texts(self.reading, findings):
                texts.setdefault(text.part, []).append(text)
        return Encoded({part: self._stream(of_part, findings) for part, of_part in texts.items()}, findings)

    def _stream(self, texts: list[Text], findings: Findings) -> Stream:
        tokens: list[list[np.ndarray] | None] = [[] for _ in texts]  # None for a text that is skipped
        for batch in _batches(texts, self.tokenizer.safe_cut):
            for part, encoded in zip(batch, self._encoded([part.content for part in batch]), strict=True):
                text, parts = texts[part.text], tokens[part.text]
                if isinstance(encoded, BaseException):
                    self._refuse(text, encoded, findings)
                    tokens[part.text] = None
                elif parts is not None:
                    parts.append(encoded)
                    if unknown := self.tokenizer.num_unknown(part.content, encoded):
                        note = f"{text.place}: {unknown:,} characters unknown to the tokenizer"
                        findings.add("unknown_characters", note, unknown)
        return self._joined(texts, tokens)

    def _joined(self, texts: list[Text], tokens: list[list[np.ndarray] | None]) -> Stream:
        end = self.tokenizer.end_of_document
        dtype = np.min_scalar_type(self.tokenizer.vocab_size - 1)
        end_token = np.array([] if end is None else [end], dtype)
        arrays, ends, num_tokens, num_bytes = [np.array([], dtype)], [], 0, 0
        for text, parts in zip(texts, tokens, strict=True):
            if parts is None:
                continue
            arrays += [*parts, end_token] if text.ends_document else parts
            num_tokens += sum(map(len, parts))
            num_bytes += len(text.content.encode())
            if text.ends_document:
                num_tokens += len(end_token)
                ends.append(num_tokens)
        return Stream(np.concatenate(arrays), np.array(ends, np.int64), num_bytes)

    def _encoded(self, texts: list[str]) -> Sequence[np.ndarray | BaseException]:
        """Returns the tokens of each text, or the error of a library that cannot encode it."""
        try:
            return self.tokenizer.encode_batch(texts)
        except BaseException as error:
            if not _is_of_library(error):
                raise
            return [error] if len(texts) == 1 else [self._encoded([text])[0] for text in texts]

    def _refuse(self, text: Text, error: BaseException, findings: Findings) -> None:
        problem = f"{text.place}: the tokenizer cannot encode it: {error}"
        if not text.is_row:
            raise DataError(problem)
        if self.reading.on_error == "stop":
            raise DataError(f"{problem}; {self.reading.names.setting('on_error', 'skip')} skips such rows")
        findings.add("skipped_rows", problem)


def _is_of_library(error: BaseException) -> bool:
    """Returns True for errors of the libraries, which have no common class; a panic of Rust has only a name."""
    if isinstance(error, UserError | MemoryError | OSError):
        return False
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


class _Part(NamedTuple):
    """Part of a text, by its index, that is encoded separately."""

    text: int
    content: str
    num_bytes: int


def _batches(texts: Sequence[Text], safe_cut: re.Pattern[bytes] | None) -> Iterator[list[_Part]]:
    """Yields parts of the texts, together about `_ENCODED_AT_ONCE` bytes: libraries need many times as much memory."""
    batch: list[_Part] = []
    num_bytes = 0
    for index, text in enumerate(texts):
        for part in _parts(index, text.content, safe_cut):
            batch.append(part)
            num_bytes += part.num_bytes
            if num_bytes >= _ENCODED_AT_ONCE:
                yield batch
                batch, num_bytes = [], 0
    if batch:
        yield batch


def _parts(index: int, text: str, safe_cut: re.Pattern[bytes] | None) -> Iterator[_Part]:
    content, start = text.encode(), 0
    while safe_cut is not None and len(content) - start > _ENCODED_AT_ONCE:
        cut = safe_cut.search(content, start + _ENCODED_AT_ONCE // 2)
        if cut is None or cut.end() == len(content):
            break
        yield _Part(index, content[start : cut.end()].decode(), cut.end() - start)
        start = cut.end()
    yield _Part(index, content[start:].decode() if start else text, len(content) - start)


def encoded(
    tasks: Iterable[Work], encoder: Callable[[Work], Result], num_workers: int
) -> Iterator[tuple[Work, Result]]:
    """Yields each task with its result, in order.

    Args:
        tasks: The tasks, read lazily.
        encoder: Encodes a task.
        num_workers: Number of worker processes; 1 encodes in this process.

    Raises:
        DataError: A task cannot be encoded; raised in the position of its result.
        RunFailure: A worker was killed.
    """
    if num_workers == 1:
        yield from ((task, encoder(task)) for task in tasks)
        return
    remaining = iter(tasks)
    pending: collections.deque[tuple[Work, Future[Result]]] = collections.deque()
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
                "a worker process was killed; if memory is short, lower --num_workers. Run the same command again to "
                "resume"
            ) from None


@contextlib.contextmanager
def _processes(encoder: Callable[[Work], Result], num_workers: int) -> Iterator[Callable[[Work], Future[Result]]]:
    """Yields a function that submits tasks to worker processes, which share the loaded encoder.

    Workers are forked: that takes milliseconds, whereas a new interpreter takes seconds for its imports.
    """
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    # One thread for each worker; unless this is set, the library also warns about a fork after using threads.
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


_encoder: Callable[[Any], Any] | None = None  # set in worker processes


def _begin_process(encoder: Callable[[Any], Any], parent: int) -> None:
    global _encoder
    _encoder = encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends the workers
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """Ends this process once its parent is gone, even if that was killed."""
    while os.getppid() == parent:
        time.sleep(_SECONDS_BETWEEN_CHECKS)
    os._exit(1)


def _encode(task: Any) -> Any:
    assert _encoder is not None
    return _encoder(task)
