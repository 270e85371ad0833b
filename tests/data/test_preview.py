"""Sequences as they are shown in a preview: documents, targets, padding, and text that a terminal would execute."""

import numpy as np
import pytest

from ml.data import Batch, ByteTokenizer
from ml.data.preview import Reader, documents, printable

_ = -100


def shown(tokens, targets, ids=None, separator=None):
    """Returns each document as text, with what is learned in brackets."""
    arrays = [np.array([row]) for row in (tokens, targets)]
    batch = Batch.of(*arrays, documents=None if ids is None else np.array([ids]))
    reader = Reader(ByteTokenizer(), image_token=300)
    texts = []
    for spans in documents(batch, 0, separator):
        texts.append("".join(f"[{reader.text(s.tokens)}]" if s.is_learned else reader.text(s.tokens) for s in spans))
    return texts


a, b, c, d, e, z = (*b"abcde", 0)

CASES = {
    "a window": ([a, b, c], [b, c, d], None, None, ["a[bcd]"]),
    "a masked prompt": ([a, b, c], [_, c, d], None, None, ["ab[cd]"]),
    "a masked end": ([a, b, c], [b, _, _], None, None, ["a[b]c"]),
    "documents of a window": ([a, z, b, c], [z, b, c, d], None, 0, ["a[\\x00]", "[bcd]"]),
    "a separator at the end": ([a, b, z], [b, z, c], None, 0, ["a[b\\x00]", "[c]"]),
    "separated documents": ([a, z, b, c], [z, _, c, d], [5, 5, 6, 6], 0, ["a[\\x00]", "b[cd]"]),
    "packed documents": ([a, b, d], [b, c, e], [0, 0, 1], None, ["a[bc]", "d[e]"]),
    "packed documents with padding": ([a, b, d, 0, 0], [b, c, e, _, _], [0, 0, 1, 2, 2], 0, ["a[bc]", "d[e]"]),
    "padding alone": ([0, 0], [_, _], [0, 0], None, [""]),
    "an image and an unknown token": ([300, 300, a, b], [_, a, b, 257], None, None, [
        "<image of 2 tokens>[ab<token 257>]"
    ]),
}  # fmt: skip


@pytest.mark.parametrize(("tokens", "targets", "ids", "separator", "expected"), CASES.values(), ids=CASES)
def test_documents_and_targets_of_a_sequence(tokens, targets, ids, separator, expected):
    assert shown(tokens, targets, ids, separator) == expected


def test_control_characters_are_escaped():
    assert printable("é漢\n\ta\x1b[31m\0\r") == "é漢\n\ta\\x1b[31m\\x00\\r"
