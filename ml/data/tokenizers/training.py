"""Training of byte pair encodings."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from ml.data.errors import DataError
from ml.files import write_atomically
from ml.optional import optional_import

NUM_BYTES = 256


def train_byte_pairs(
    texts: Iterable[str], output: Path, vocab_size: int, special_tokens: Sequence[str], show_progress: bool
) -> int:
    """Trains a byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) and writes it as tokenizer.json.

    Text is split into words by GPT-2's pattern. Ids are assigned to the special tokens, then the 256 bytes, then the
    learned merges, of which there are fewer than requested if no other pair occurs twice. Equal texts give equal files.

    Args:
        texts: Texts, read once; only distinct words are kept in memory.
        output: File to write.
        vocab_size: Largest number of tokens, special tokens and bytes included.
        special_tokens: Special tokens, as written in the file; text is never encoded as one of them.
        show_progress: True shows the library's progress bar on standard error.

    Returns:
        Number of tokens.

    Raises:
        DataError: The library is not installed, or a special token is that of a byte.
        OSError: The file cannot be written.
    """
    tokenizers = optional_import("tokenizers", "tokenizers", "training a tokenizer", DataError)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    if single := [token for token in special_tokens if token in alphabet]:
        raise DataError(f"the special token {single[0]!r} is also the token of a byte; choose a longer one")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=alphabet,
        min_frequency=2,
        show_progress=show_progress,
    )
    tokenizer.train_from_iterator(iter(texts), trainer)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, _without_merges_to(special_tokens, tokenizer.to_str(pretty=True)) + "\n")
    return tokenizer.get_vocab_size()


def _without_merges_to(special_tokens: Sequence[str], content: str) -> str:
    """Returns a tokenizer.json without the merges that result in special tokens.

    The library gives a merge to "end" the id of a special token "end", so that the word would become the special token.
    """
    description = json.loads(content)
    model = description["model"]
    merges = [merge for merge in model["merges"] if "".join(merge) not in special_tokens]
    if len(merges) == len(model["merges"]):
        return content
    return json.dumps(description | {"model": model | {"merges": merges}}, indent=2, ensure_ascii=False)
