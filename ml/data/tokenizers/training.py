"""Training of byte pair encodings."""

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
