"""Time of `prepare` from text to token files on disk, against the tokenizer library alone.

The library gets the text in memory, cut into pieces of 64 KiB, and the same number of cores: its own threads
(`encode_batch_fast` of tokenizers, `encode_ordinary_batch` of tiktoken), or one call on the whole text for one core.
The baseline for bytes reads the file, checks that it is UTF-8 and writes it again in one call. For a small text, the
time of prepare is that of creating and flushing a dozen files and folders.

Both tokenizers use the same byte-level BPE of 8,192 tokens, trained here on the text.

    python benchmarks/prepare.py [TEXT] [--rounds=5]
"""

import argparse
import base64
import itertools
import multiprocessing
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from timing import compare

from ml.data import ByteTokenizer
from ml.data.corpora.standard_library import standard_library_files
from ml.data.preparation import Reading, Settings, find_sources, prepare
from ml.data.tokenizers import HuggingFaceTokenizer, TiktokenTokenizer, Tokenizer
from ml.data.tokenizers.byte_level import bytes_of_pieces
from ml.data.tokenizers.training import train_byte_pairs

END = "<|endoftext|>"
GPT2_WORDS = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
PIECE = 2**16


class NoDisplay:
    def start(self, num_bytes: int, total_bytes: int) -> None: ...

    def advance(self, num_bytes: int, num_tokens: int) -> None: ...

    def say(self, message: str) -> None: ...


def preparing(text: Path, tokenizer: Tokenizer, folder: Path, num_workers: int) -> Callable[[], object]:
    outputs = (folder / f"out{n}" for n in itertools.count())  # a new folder each time, so that removal is not timed

    def run() -> None:
        settings = Settings(next(outputs), Reading(), num_workers=num_workers)
        prepare(find_sources([text]), tokenizer, settings, NoDisplay())

    return run


def in_pieces(text: str) -> list[str]:
    pieces, start = [], 0
    for match in re.finditer(r"[A-Za-z](?=\n)", text):
        if match.end() - start >= PIECE:
            pieces.append(text[start : match.end()])
            start = match.end()
    return [*pieces, text[start:]]


def tokenizers_of(text: str, folder: Path) -> tuple[HuggingFaceTokenizer, TiktokenTokenizer]:
    # A separate process, because `prepare` forks, and forking takes longer the more memory the parent uses.
    arguments = (in_pieces(text), folder / "tokenizer.json", 8192, [END], False)
    training = multiprocessing.get_context("fork").Process(target=train_byte_pairs, args=arguments)
    training.start()
    training.join()
    hugging_face = HuggingFaceTokenizer(str(folder / "tokenizer.json"))
    pieces = bytes_of_pieces(hugging_face._tokenizer.get_vocab(), hugging_face._description)[1:]  # without END
    lines = [b"%s %d\n" % (base64.b64encode(piece), rank) for rank, piece in enumerate(pieces)]
    (folder / "ranks").write_bytes(b"".join(lines))
    special = {END: len(pieces)}
    return hugging_face, TiktokenTokenizer(path=str(folder / "ranks"), pattern=GPT2_WORDS, special_tokens=special)


def copying(text: Path, folder: Path) -> Callable[[], object]:
    def run() -> None:
        content = text.read_bytes().decode("utf-8").encode("utf-8")
        with (folder / "copy").open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    return run


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "text", nargs="?", type=Path, help="a text file (default: the sources of Python's standard library)"
    )
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = arguments.text or folder / "standard_library.txt"
        if arguments.text is None:
            files = sorted(standard_library_files()[1])
            path.write_text("".join(file.read_text("utf-8", errors="replace") for file in files))
        text = path.read_text("utf-8")
        hugging_face, tiktoken = tokenizers_of(text, folder)
        library, ranks, pieces = hugging_face._tokenizer, tiktoken._encoding, in_pieces(text)
        long = folder / "long.txt"
        with long.open("w") as file:
            for _ in range(2**26 // path.stat().st_size + 1):
                file.write(text)
        cases = {
            "tokenizers, 1 core": (path, hugging_face, 1, lambda: library.encode_batch_fast([text])),
            "tiktoken, 1 core": (path, tiktoken, 1, lambda: ranks.encode_ordinary(text)),
            f"tokenizers, {cores} cores": (path, hugging_face, cores, lambda: library.encode_batch_fast(pieces)),
            f"tiktoken, {cores} cores": (
                path, tiktoken, cores, lambda: ranks.encode_ordinary_batch(pieces, num_threads=cores)
            ),
            "bytes": (path, ByteTokenizer(), 1, copying(path, folder)),
            "bytes, 64 MiB": (long, ByteTokenizer(), 1, copying(long, folder)),
        }  # fmt: skip
        print(f"{path.stat().st_size:,} bytes, medians of {arguments.rounds} alternating rounds")
        for label, (source, tokenizer, num_workers, by_itself) in cases.items():
            ours = preparing(source, tokenizer, folder / label, num_workers)
            library_seconds, our_seconds, ratio = compare(by_itself, ours, arguments.rounds)
            print(f"{label:<22} prepare {our_seconds:.3f} s, the library {library_seconds:.3f} s, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
