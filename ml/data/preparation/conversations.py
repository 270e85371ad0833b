"""Tokenizes conversations in parallel into a folder that training maps into memory."""

import hashlib
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from ml.config.garbage import no_garbage_collection
from ml.data.chat.encoding import ChatFormat, Example
from ml.data.chat.messages import Conversation
from ml.data.errors import DataError
from ml.data.preparation.encoding import encoded
from ml.data.reading.options import OnError
from ml.data.token_files.conversations import ENDS, FIRST, FORMAT, MANIFEST, NAMES, TARGETS, TOKENS, chat_sha256
from ml.data.token_files.reading import DTYPES, smallest_dtype
from ml.files import write_atomically

_AT_ONCE = 256  # conversations of a task
logger = logging.getLogger(__name__)


class EncodedConversations(NamedTuple):
    """Tokens of a batch of conversations, as bytes of the files, and the problems of those without tokens."""

    tokens: np.ndarray
    targets: np.ndarray
    lengths: np.ndarray
    first: np.ndarray
    names: bytes
    problems: list[str]


@dataclass(frozen=True)
class ConversationEncoder:
    """Encodes batches of conversations.

    Attributes:
        chat: The template and the tokenizer.
        dtype: Type of the tokens.
    """

    chat: ChatFormat
    dtype: str

    def __call__(self, batch: list[Conversation]) -> EncodedConversations:
        with no_garbage_collection():  # a fourth of the time otherwise
            found = self.chat.examples(batch)
        kept = [one for one in found if isinstance(one, Example)]
        problems = [f"{c.place}: {one}" for c, one in zip(batch, found, strict=True) if isinstance(one, DataError)]
        tokens = np.concatenate([np.zeros(0, DTYPES[self.dtype]), *(one.tokens for one in kept)])
        targets = np.concatenate([np.zeros(0, dtype=bool), *(one.is_target for one in kept)])
        lengths = np.array([len(one.tokens) for one in kept], dtype=np.int64)
        first = np.array([_first_target(one.is_target) for one in kept], dtype=np.int64)
        names = b"".join(bytes.fromhex(one.name) for one in kept)
        return EncodedConversations(tokens.astype(DTYPES[self.dtype]), targets, lengths, first, names, problems)


def _first_target(is_target: np.ndarray) -> int:
    """Returns the position of the first target after the first token; the length if there is none."""
    found = np.flatnonzero(is_target[1:])
    return int(found[0]) + 1 if len(found) else len(is_target)


class Summary(NamedTuple):
    """Result of a preparation.

    Attributes:
        num_conversations: Number of conversations.
        num_tokens: Number of their tokens.
        num_targets: Number of tokens to predict.
        num_skipped: Number of conversations that could not be rendered.
    """

    num_conversations: int
    num_tokens: int
    num_targets: int
    num_skipped: int


def prepare_conversations(
    conversations: Iterable[Conversation],
    chat: ChatFormat,
    output: Path,
    num_workers: int,
    on_error: OnError = "stop",
    advance: Callable[[int], None] = lambda count: None,
) -> Summary:
    """Tokenizes conversations and writes the folder, whose manifest comes last.

    Args:
        conversations: The conversations, read lazily.
        chat: The template and the tokenizer.
        output: Folder to write; created if missing.
        num_workers: Number of worker processes.
        on_error: "stop" raises an error at a conversation that cannot be rendered, "skip" omits it.
        advance: Called with the number of conversations written so far.

    Raises:
        DataError: A conversation cannot be read or rendered.
        RunFailure: A worker was killed.
    """
    encoder = ConversationEncoder(chat, smallest_dtype(chat.tokenizer.vocab_size))
    chat.template.load(chat.tokenizer)  # before the workers are forked
    output.mkdir(parents=True, exist_ok=True)
    (output / MANIFEST).unlink(missing_ok=True)  # the folder becomes incomplete
    skipped: list[str] = []
    count = num_tokens = num_targets = 0
    with ExitStack() as stack:
        stack.enter_context(no_garbage_collection())
        files = {name: stack.enter_context(_Hashed(output / name)) for name in (TOKENS, TARGETS, ENDS, FIRST, NAMES)}
        for _, found in encoded(_batches(conversations), encoder, num_workers):
            if found.problems and on_error == "stop":
                raise DataError(f'{found.problems[0]}; ChatFiles.on_error = "skip" skips such conversations')
            skipped += found.problems
            files[TOKENS].write(found.tokens.tobytes())
            files[TARGETS].write(found.targets.tobytes())
            files[ENDS].write((num_tokens + np.cumsum(found.lengths)).astype("<i8").tobytes())
            files[FIRST].write(found.first.astype("<i8").tobytes())
            files[NAMES].write(found.names)
            count, num_tokens = count + len(found.lengths), num_tokens + len(found.tokens)
            num_targets += int(np.count_nonzero(found.targets))
            advance(count)
        hashes = {name: file.finish() for name, file in files.items()}
    if not count:
        raise DataError("there is no conversation to prepare (ChatFiles.paths)")
    if skipped:
        logger.warning("skipped %d conversations, the first: %s", len(skipped), skipped[0])
    manifest = {
        "format": FORMAT,
        "dtype": DTYPES[encoder.dtype].str,
        "num_tokens": num_tokens,
        "num_conversations": count,
        "chat": chat_sha256(chat),
        "files": hashes,
    }
    write_atomically(output / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return Summary(count, num_tokens, num_targets, len(skipped))


def _batches(conversations: Iterable[Conversation]) -> Iterable[list[Conversation]]:
    remaining = iter(conversations)
    while batch := list(itertools.islice(remaining, _AT_ONCE)):
        yield batch


class _Hashed:
    """File that is written once, and its hash."""

    def __init__(self, path: Path):
        self._stream: BinaryIO = path.open("wb")
        self._digest = hashlib.sha256()

    def write(self, content: bytes) -> None:
        self._stream.write(content)
        self._digest.update(content)

    def finish(self) -> str:
        """Flushes to disk and returns the SHA-256."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        return self._digest.hexdigest()

    def __enter__(self) -> "_Hashed":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
