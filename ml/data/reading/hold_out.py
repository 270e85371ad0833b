"""Held-out splits for validation, chosen by hashes."""

import hashlib
from collections.abc import Iterable

from ml.data.reading.documents import Document
from ml.data.reading.options import HoldOutBy


def hold_out(
    documents: list[Document], fraction: float, by: HoldOutBy = "name"
) -> tuple[list[Document], list[Document]]:
    """Splits documents into a training part and a held-out part of about `fraction` of the text.

    A document is held out if the hash of its name, as a number in [0, 1), is below `fraction`: adding or removing other
    documents does not move it. Rows are hashed by their text, so that equal ones are on the same side. Held-out
    documents are ordered by that hash, so that any prefix of them is a fair sample. If this selects less than a quarter
    or more than four times the requested amount (few documents, or one that is most of the text), the end of every
    document is held out instead.

    Args:
        documents: All documents.
        fraction: Requested fraction of the characters, in [0, 1]; 0 holds out nothing, 1 everything.
        by: What of a file is hashed.

    Returns:
        Documents to train on, and held-out documents.
    """
    if fraction in (0.0, 1.0):
        return ([], documents) if fraction else (documents, [])
    hashes = {document.name: _hash_of(document, by) for document in documents}
    trained = [document for document in documents if hashes[document.name] >= fraction]
    held_out = [document for document in documents if hashes[document.name] < fraction]
    requested = fraction * _size(documents)
    if not requested / 4 <= _size(held_out) <= min(requested * 4, _size(documents) / 2):
        return _cut(documents, fraction)
    return trained, sorted(held_out, key=lambda document: hashes[document.name])


def held_out_names(names: Iterable[str], fraction: float) -> set[str]:
    """Returns the names that are held out: those with the smallest hashes.

    Args:
        names: All names; duplicates count once.
        fraction: Fraction of the distinct names. Any positive fraction holds out at least one of several.
    """
    ordered = sorted(set(names), key=lambda name: hashlib.sha256(name.encode()).digest())
    at_least = 1 if fraction > 0.0 and len(ordered) > 1 else 0
    return set(ordered[: max(at_least, round(fraction * len(ordered)))])


def hash_fraction(content: bytes) -> float:
    """Hashes `content` to a number in [0, 1); content is held out if it is below the validation fraction."""
    return fraction_of(hashlib.sha256(content).digest())


def fraction_of(digest: bytes) -> float:
    """Converts a SHA-256 to a number in [0, 1)."""
    return int.from_bytes(digest[:6], "big") / 2**48


def num_shared(trained: list[Document], held_out: list[Document]) -> int:
    """Returns the number of held-out documents that are equal to one that is trained on."""
    texts = {hash(document.text) for document in held_out}
    candidates = {document.text for document in trained if hash(document.text) in texts}
    return sum(document.text in candidates for document in held_out)


def _hash_of(document: Document, by: HoldOutBy) -> float:
    return hash_fraction((document.text if document.is_row or by == "content" else document.name).encode())


def _size(documents: list[Document]) -> int:
    return sum(len(document.text) for document in documents)


def _cut(documents: list[Document], fraction: float) -> tuple[list[Document], list[Document]]:
    cuts = [len(document.text) - round(len(document.text) * fraction) for document in documents]
    pairs = list(zip(documents, cuts, strict=True))
    heads = [document._replace(text=document.text[:cut]) for document, cut in pairs]
    tails = [document._replace(text=document.text[cut:]) for document, cut in pairs]
    return heads, [tail for tail in tails if tail.text]
