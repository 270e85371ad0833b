"""Identity of tokenizers: a hash of vocabulary, merges and special tokens, wherever they are read from.

A tokenizer with further special tokens after its vocabulary encodes text as the one without them does. Its lineage is
the identity without any of them, with the first, with the first two, and so on: data of each of these fits it.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple


class Definition(NamedTuple):
    """Everything that decides the tokens of a text.

    Attributes:
        ordinary: Vocabulary, merges, rules, and special tokens among the ordinary ones, as a JSON value.
        added: Special tokens after all ordinary ones: name by id.
    """

    ordinary: Any
    added: Mapping[int, str]


def lineage_of(definition: Definition) -> tuple[str, ...]:
    """Returns the lineage of a tokenizer; the last is its identity."""
    lineage = [_sha256(definition.ordinary)]
    for token, name in sorted(definition.added.items()):
        lineage.append(_sha256([lineage[-1], token, name]))
    return tuple(lineage)


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
