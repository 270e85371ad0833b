"""Comparison of the tokenizers of several data, by their identities."""

from collections.abc import Mapping

from ml.data.errors import DataError
from ml.data.tokenizers.base import Tokenizer

_SHOWN = 12  # digits of a hash in a message


def described(tokenizer: Tokenizer) -> str:
    """Describes a tokenizer in messages: class, source, size and identity."""
    source = f" of {tokenizer.source}" if tokenizer.source else ""
    size = f"{tokenizer.vocab_size:,} tokens"
    return f"{type(tokenizer).__name__}{source} ({size}, SHA-256 {tokenizer.identity[:_SHOWN]})"


def fits(tokenizer: Tokenizer, other: Tokenizer) -> bool:
    """Returns True if tokens of `other` are tokens of `tokenizer`: both are equal, or it has further special tokens."""
    return other.identity == tokenizer.identity or other.identity in tokenizer.lineage


def largest_of(tokenizers: Mapping[str, Tokenizer]) -> str:
    """Returns the name of the tokenizer that all others fit.

    Args:
        tokenizers: Tokenizers by the name of their data.

    Raises:
        DataError: Two of them differ; the message names both.
    """
    names = list(tokenizers)
    largest = names[0]
    for name in names[1:]:
        if fits(tokenizers[largest], tokenizers[name]):
            continue
        if fits(tokenizers[name], tokenizers[largest]):
            largest = name
        else:
            raise DataError(
                f"the data must share one tokenizer: {largest} has {described(tokenizers[largest])}, {name} has "
                f"{described(tokenizers[name])}"
            )
    return largest


def require_fit(tokenizer: Tokenizer, other: Tokenizer, name: str, other_name: str) -> None:
    """Requires that tokens of another tokenizer are tokens of this one.

    Args:
        tokenizer: The tokenizer.
        other: The other tokenizer.
        name: Place of the tokenizer, for the message.
        other_name: Place of the other one.

    Raises:
        DataError: They are not; the message names both.
    """
    if not fits(tokenizer, other):
        raise DataError(
            f"{other_name} has another tokenizer than {name}: {described(other)} instead of {described(tokenizer)}"
        )
