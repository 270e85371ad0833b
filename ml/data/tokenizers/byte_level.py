"""Bytes represented by the entries of a tokenizer.json."""

import re
from collections.abc import Collection
from typing import Any

_SPACE = "▁"  # space in SentencePiece and its descendants
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def bytes_of_pieces(vocabulary: dict[str, int], description: dict[str, Any]) -> list[bytes] | None:
    """Returns the bytes of each token, by id; None if the decoder does more than concatenate bytes.

    Args:
        vocabulary: Token id of each entry.
        description: Content of the tokenizer.json.
    """
    decoder = description.get("decoder") or {}
    if description["model"].get("end_of_word_suffix") or description["model"].get("continuing_subword_prefix"):
        return None  # markers in the entries that are not text
    kinds = {step["type"] for step in decoder.get("decoders", [decoder]) if step}
    if kinds == {"ByteLevel"}:
        as_bytes = _byte_level
    elif kinds and kinds <= {"Metaspace", "ByteFallback", "Fuse", "Replace", "Strip"}:
        as_bytes = _with_spaces
    else:
        return None
    added = {token["id"] for token in description["added_tokens"]}
    pieces = [b""] * (max(vocabulary.values()) + 1)
    for entry, token in vocabulary.items():
        pieces[token] = entry.encode() if token in added else as_bytes(entry)
    return pieces


def byte_characters() -> Collection[str]:
    """Returns the characters that represent the 256 bytes in a byte-level vocabulary."""
    return _BYTE_OF.keys()


def _with_spaces(entry: str) -> bytes:
    byte = _BYTE.fullmatch(entry)
    return bytes([int(byte[1], 16)]) if byte else entry.replace(_SPACE, " ").encode()


def _byte_level(entry: str) -> bytes:
    """Decodes an entry in the byte alphabet; any other entry represents its own text, as in the library."""
    known = all(character in _BYTE_OF for character in entry)
    return bytes(_BYTE_OF[character] for character in entry) if known else entry.encode()


def _byte_alphabet() -> dict[str, int]:
    """Returns the byte of each character of the byte-level alphabet.

    Bytes that are printable in Latin-1 map to themselves; the others map, in order, to the characters from U+0100 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
