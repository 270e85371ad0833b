"""Small tokenizers of each library, trained on text available on every machine."""

import base64
import functools
import inspect
import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from ml.data import ByteTokenizer
from ml.data.tokenizers import HuggingFaceTokenizer, SentencePieceTokenizer, TiktokenTokenizer

END = "<|endoftext|>"
GPT2_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


@functools.cache
def some_text() -> str:
    """Returns Python sources: words, numbers, long lines of punctuation, and indentation."""
    return "".join(inspect.getsource(module) for module in (argparse_module(), json.decoder, json.encoder))


def argparse_module():
    import argparse

    return argparse


@functools.cache
def _byte_level() -> str:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([some_text()], trainer)
    return tokenizer.to_str()


@functools.cache
def _sentence_piece(byte_fallback: bool) -> bytes:
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(some_text().splitlines()),
        model_writer=model,
        vocab_size=600,
        byte_fallback=byte_fallback,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return model.getvalue()


def hugging_face(folder: Path, **changes) -> HuggingFaceTokenizer:
    """A byte-level BPE with the end of a document as token 0; `changes` replace entries of its tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(json.loads(_byte_level()) | changes))
    return HuggingFaceTokenizer(str(folder / "tokenizer.json"))


def ranks(folder: Path) -> Path:
    """The same BPE as a file of ranks; each rank is the token index minus one."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
    vocabulary = json.loads(_byte_level())["model"]["vocab"]
    pieces = {number - 1: bytes(byte_of[c] for c in entry) for entry, number in vocabulary.items() if entry != END}
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "ranks.tiktoken"
    file.write_bytes(b"".join(b"%s %d\n" % (base64.b64encode(pieces[n]), n) for n in sorted(pieces)))
    return file


def tiktoken(folder: Path, pattern: str = GPT2_PATTERN) -> TiktokenTokenizer:
    """The same BPE with the end of a document as the last token."""
    return TiktokenTokenizer(path=str(ranks(folder)), pattern=pattern, special_tokens={END: 599})


def sentence_piece(folder: Path, byte_fallback: bool = True) -> SentencePieceTokenizer:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "some.model").write_bytes(_sentence_piece(byte_fallback))
    return SentencePieceTokenizer(str(folder / "some.model"))


def byte(folder: Path) -> ByteTokenizer:
    return ByteTokenizer()


ALL = [byte, hugging_face, tiktoken, sentence_piece]
