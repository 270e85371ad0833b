"""Trains a byte pair encoding on text of one's own."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from ml.data.errors import DataError
from ml.files import write_atomically
from ml.optional import optional_import

NUM_BYTES = 256


def train_byte_pairs(
    texts: Iterable[str], output: Path, vocab_size: int, special_tokens: Sequence[str], show_progress: bool
) -> int:
    """Writes a tokenizer.json of a byte-level BPE (Sennrich et al. 2016; Radford et al. 2019); returns its real size.

    Text is cut into words as GPT-2 does. The special tokens come first, then the 256 bytes, then what was learned,
    which is less than asked for where the text has no more pairs that come twice. The same texts give the same file.

    Args:
        texts: Taken one after another; only their different words are kept in memory.
        output: The file.
        vocab_size: How many tokens there may be, special ones and bytes included.
        special_tokens: Written so in the file; what stands in text is never taken for one.
        show_progress: Whether the library shows how far it is on standard error.

    Raises:
        DataError: The library is not installed.
        OSError: The file cannot be written.
    """
    tokenizers = optional_import("tokenizers", "tokenizers", "training a tokenizer", DataError)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=2,
        show_progress=show_progress,
    )
    tokenizer.train_from_iterator(iter(texts), trainer)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, tokenizer.to_str(pretty=True) + "\n")
    return tokenizer.get_vocab_size()
