"""Characters of a text that a tokenizer.json cannot represent."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ml.data.tokenizers.byte_level import byte_characters

if TYPE_CHECKING:
    import tokenizers

UnknownCounter = Callable[[str, np.ndarray], int]


def unknown_counter(tokenizer: "tokenizers.Tokenizer", description: dict[str, Any]) -> UnknownCounter:
    """Returns a function that counts the unknown characters of a text, given the text and its tokens.

    A model with a token for unknown characters is counted by that token; a run of them may share one. A byte pair
    encoding without one drops characters outside of its alphabet.

    Args:
        tokenizer: The tokenizer.
        description: Content of the tokenizer.json.
    """
    model = description["model"]
    unknown = model.get("unk_id") if model["type"] == "Unigram" else _token(tokenizer, model.get("unk_token"))
    if unknown is not None:
        return functools.partial(_tokens_of, unknown)
    has_affixes = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    if model["type"] != "BPE" or model.get("byte_fallback") or has_affixes:
        return _none
    alphabet = frozenset(entry for entry in model["vocab"] if len(entry) == 1)
    return _none if _has_all_bytes(description, alphabet) else functools.partial(_dropped, tokenizer, alphabet)


def _has_all_bytes(description: dict[str, Any], alphabet: frozenset[str]) -> bool:
    steps = description.get("pre_tokenizer") or {}
    kinds = {step.get("type") for step in steps.get("pretokenizers", [steps])}
    return "ByteLevel" in kinds and alphabet.issuperset(byte_characters())


def _token(tokenizer: "tokenizers.Tokenizer", text: str | None) -> int | None:
    return None if text is None else tokenizer.token_to_id(text)


def _tokens_of(unknown: int, text: str, tokens: np.ndarray) -> int:
    return int(np.count_nonzero(tokens == unknown))


def _none(text: str, tokens: np.ndarray) -> int:
    return 0


def _dropped(tokenizer: "tokenizers.Tokenizer", alphabet: frozenset[str], text: str, tokens: np.ndarray) -> int:
    normalized = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
    if alphabet.issuperset(normalized):
        return 0
    if tokenizer.pre_tokenizer is None:
        words = [normalized]
    else:
        words = [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normalized)]
    return sum(character not in alphabet for word in words for character in word)
