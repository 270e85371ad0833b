"""The held-out split for validation, chosen by hashes."""

import hashlib
from collections.abc import Iterable

from ml.data.reading.documents import Document


def hold_out(documents: list[Document], fraction: float) -> tuple[list[Document], list[Document]]:
    """Splits documents in those to train on and those held out, about `fraction` of them.

    A document is held out when the hash of its name says so: adding or removing others changes nothing for it. Held-out
    documents are ordered by that hash, so that the first part of them is as good a sample as all. Where this takes less
    than a quarter or more than four times of what was asked (few documents, or one that is most of the text), the end
    of every document is held out instead.
    """
    if fraction in (0.0, 1.0):
        return ([], documents) if fraction else (documents, [])
    places = {document.name: share_of(document.name.encode()) for document in documents}
    trained = [document for document in documents if places[document.name] >= fraction]
    held_out = [document for document in documents if places[document.name] < fraction]
    wanted = fraction * _size(documents)
    if not wanted / 4 <= _size(held_out) <= min(wanted * 4, _size(documents) / 2):
        return _cut(documents, fraction)
    return trained, sorted(held_out, key=lambda document: places[document.name])


def held_out_names(names: Iterable[str], fraction: float) -> set[str]:
    """`fraction` of the different names, by their hashes; at least one if there are several and any are wanted."""
    ordered = sorted(set(names), key=lambda name: hashlib.sha256(name.encode()).digest())
    at_least = 1 if fraction > 0.0 and len(ordered) > 1 else 0
    return set(ordered[: max(at_least, round(fraction * len(ordered)))])


def share_of(content: bytes) -> float:
    """A number in [0, 1) from the hash of `content`; what is below the fraction is held out."""
    return int.from_bytes(hashlib.sha256(content).digest()[:6], "big") / 2**48


def _size(documents: list[Document]) -> int:
    return sum(len(document.text) for document in documents)


def _cut(documents: list[Document], fraction: float) -> tuple[list[Document], list[Document]]:
    cuts = [len(document.text) - round(len(document.text) * fraction) for document in documents]
    pairs = list(zip(documents, cuts, strict=True))
    heads = [Document(document.name, document.text[:cut]) for document, cut in pairs]
    tails = [Document(document.name, document.text[cut:]) for document, cut in pairs]
    return heads, [tail for tail in tails if tail.text]
