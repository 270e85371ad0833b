"""Time of `prepare_chat` from JSON lines to tokens on disk, against the tokenizer library alone.

The library gets the texts of the messages in memory and the same number of cores (`encode_batch_fast`). The
conversations have three turns of a question and an answer, cut from the sources of Python's standard library; the
tokenizer is a byte-level BPE trained on them, with the markers of ChatML as special tokens.

    python benchmarks/prepare_chat.py [--conversations=20000] [--characters=70] [--rounds=3]
"""

import argparse
import itertools
import json
import multiprocessing
import os
import tempfile
from pathlib import Path

from timing import compare

from ml.data import ChatData, ChatFiles, ChatML
from ml.data.corpora.standard_library import standard_library_files
from ml.data.preparation.conversations import Summary, prepare_conversations
from ml.data.tokenizers import HuggingFaceTokenizer
from ml.data.tokenizers.training import train_byte_pairs

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCABULARY = 32_000
TURNS = 3


def conversations_of(text: str, count: int, size: int) -> list[list[str]]:
    """Returns the messages of each conversation: questions of `size` characters, answers of twice as many."""
    messages, start = [], 0
    for _ in range(count):
        pieces = []
        for length in TURNS * (size, 2 * size):
            start = start if start + length < len(text) else 0
            pieces.append(text[start : start + length].strip() or "yes")
            start += length
        messages.append(pieces)
    return messages


def record_of(pieces: list[str]) -> str:
    roles = itertools.cycle(("user", "assistant"))
    messages = [{"role": role, "content": piece} for role, piece in zip(roles, pieces, strict=False)]
    return json.dumps({"messages": messages}) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--conversations", type=int, default=20_000)
    parser.add_argument("--characters", type=int, default=70, help="of a question; an answer has twice as many")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    os.environ["RAYON_NUM_THREADS"] = str(cores)  # of the library
    text = "".join(file.read_text("utf-8", errors="replace") for file in sorted(standard_library_files()[1]))
    conversations = conversations_of(text, arguments.conversations, arguments.characters)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "chat.jsonl").write_text("".join(map(record_of, conversations)))
        # A separate process, because preparation forks, which must happen before the library starts its threads.
        training = multiprocessing.get_context("fork").Process(
            target=train_byte_pairs, args=([text[:8_000_000]], folder / "tokenizer.json", VOCABULARY, SPECIAL, False)
        )
        training.start()
        training.join()
        tokenizer = HuggingFaceTokenizer(str(folder / "tokenizer.json"))
        data = ChatData(
            lambda: ChatFiles(str(folder / "chat.jsonl")), ChatML, lambda: HuggingFaceTokenizer(tokenizer.path)
        )
        outputs = (folder / f"out{number}" for number in itertools.count())
        summaries: list[Summary] = []

        def ours() -> None:
            found = data.corpus.conversations()
            summaries.append(prepare_conversations(found, data.chat, next(outputs), cores))

        pieces = list(itertools.chain.from_iterable(conversations))
        by_itself, seconds, ratio = compare(
            lambda: tokenizer._tokenizer.encode_batch_fast(pieces), ours, arguments.rounds
        )
        count, num_tokens = summaries[0].num_conversations, summaries[0].num_tokens
        print(
            f"{count:,} conversations of {TURNS} turns, {num_tokens / count:.0f} tokens each, {cores} cores: "
            f"{count / seconds:,.0f} a second, the library alone {count / by_itself:,.0f}, ratio {ratio:.2f}"
        )


if __name__ == "__main__":
    main()
