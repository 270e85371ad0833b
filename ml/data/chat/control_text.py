"""Special tokens in rendered text, and their names in what people wrote, which stay text."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ml.data.tokenizers import SpecialToken

_FIRST_MASK = 0xF0000  # a private plane of Unicode


class Found(NamedTuple):
    """Special token in rendered text.

    Attributes:
        start: Position of its first character, white space that it includes counted.
        end: Position after its last character.
        text: Name of the token.
    """

    start: int
    end: int
    text: str


class ControlText:
    """Names of the special tokens of a tokenizer.

    Args:
        special: Special tokens by their name.
        reserved: Other texts that are masked in messages.
    """

    def __init__(self, special: Mapping[str, SpecialToken], reserved: Sequence[str] = ()):
        self._special = {text: token for text, token in special.items() if text}
        self.names = frozenset(self._special)
        longest_first = sorted(self._special, key=len, reverse=True)
        self._tokens = _any_of(longest_first)
        self._names = _any_of([*longest_first, *reserved])
        ends = sorted({text[:length] for text in longest_first for length in range(1, len(text))}, key=len)
        starts = sorted({text[length:] for text in longest_first for length in range(1, len(text))}, key=len)
        self._ends, self._starts = tuple(ends[::-1]), tuple(starts[::-1])

    def find(self, text: str) -> Iterator[Found]:
        """Yields the special tokens in rendered text, from left to right; the longest where several begin."""
        before = 0
        for match in self._tokens.finditer(text):
            start, end = match.span()
            token = self._special[match[0]]
            if token.takes_before:
                start = before + len(text[before:start].rstrip())
            if token.takes_after:
                end += len(text[end:]) - len(text[end:].lstrip())
            yield Found(start, end, match[0])
            before = end

    def names_in(self, text: str) -> bool:
        """Returns True if text contains the name of a special token."""
        return self._names.search(text) is not None

    def is_in(self, value: Any) -> bool:
        """Returns True if a text in a JSON value contains the name of a special token, or could complete one."""
        if isinstance(value, str):
            return self.names_in(value) or value.endswith(self._ends) or value.startswith(self._starts)
        if isinstance(value, dict):
            return any(map(self.names_in, value)) or any(map(self.is_in, value.values()))
        return isinstance(value, list) and any(map(self.is_in, value))

    def masked(self, value: Any, mask: "Mask", kept: Collection[str] = ()) -> Any:
        """Returns a JSON value in which no text is the name of a special token, or could complete one.

        Texts keep their length: a character of each name is replaced.

        Args:
            value: The value.
            mask: Replaces characters.
            kept: Names that are not changed.
        """
        if isinstance(value, str):
            return self._masked(value, mask, kept)
        if isinstance(value, dict):
            return {self._inside(key, mask, kept): self.masked(item, mask, kept) for key, item in value.items()}
        return [self.masked(item, mask, kept) for item in value] if isinstance(value, list) else value

    def _masked(self, text: str, mask: "Mask", kept: Collection[str]) -> str:
        text = self._inside(text, mask, kept)
        end = next((end for end in self._ends if text.endswith(end)), None)
        if end is not None:
            text = text[: -len(end)] + mask.of(end[0]) + end[1:]
        start = next((start for start in self._starts if text.startswith(start)), None)
        if start is not None:
            text = start[:-1] + mask.of(start[-1]) + text[len(start) :]
        return text

    def _inside(self, text: str, mask: "Mask", kept: Collection[str]) -> str:
        return self._names.sub(lambda name: name[0] if name[0] in kept else mask.of(name[0][0]) + name[0][1:], text)


def _any_of(texts: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, texts)) or "(?!)")


class Mask:
    """Replaces characters by private ones that a text does not contain.

    Args:
        texts: All text, in which no replacement occurs.
    """

    def __init__(self, texts: str):
        self._taken = set(texts)
        self._masks: dict[str, str] = {}

    def of(self, character: str) -> str:
        """Returns the replacement of a character, always the same one."""
        if character not in self._masks:
            code = _FIRST_MASK
            while chr(code) in self._taken:
                code += 1
            self._masks[character] = chr(code)
            self._taken.add(chr(code))
        return self._masks[character]

    def undone(self, text: str) -> str:
        """Returns text with the characters that were replaced."""
        return text.translate({ord(masked): character for character, masked in self._masks.items()})
