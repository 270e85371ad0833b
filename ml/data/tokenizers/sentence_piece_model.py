"""SentencePiece's models and results in the wire format of protocol buffers.

In a message the last value of a field counts, so that a value is changed by appending another one.
"""

from collections.abc import Iterator
from typing import NamedTuple

_PIECE, _NORMALIZER = 1, 3  # fields of the model
_TEXT, _TYPE = 1, 3  # fields of a piece
_USER_DEFINED = 4
_UNUSED = b"\x18\x05"  # the type of pieces that encoding never returns
_EXACT = b"\x20\x00"  # remove_extra_whitespaces: false
_WITHOUT_PREFIX = b"\x18\x00"  # add_dummy_prefix: false
_PIECES = 2  # field of a result
_ID, _SURFACE = 2, 3  # fields of a piece of a result
_LENGTH_DELIMITED = 2


class Field(NamedTuple):
    """Field of a message.

    Attributes:
        number: Its number.
        value: An integer, or the content of a string or message.
        start: Position of the field.
        end: Position after it.
    """

    number: int
    value: int | bytes
    start: int
    end: int


def changed(model: bytes, *, hides_symbols: bool, is_part: bool, is_start: bool) -> bytes:
    """Returns a model that encodes differently; its tokens keep their ids.

    Args:
        model: The serialized model.
        hides_symbols: True encodes user-defined symbols in text as other text. Runs of white space remain tokens.
        is_part: True keeps white space at the ends of a text, which is part of a longer one.
        is_start: False prepends no space to a part, which follows other text.
    """
    normalizer = (_EXACT if is_part else b"") + (b"" if is_start else _WITHOUT_PREFIX)
    parts, has_normalizer = [], False
    for field in _fields(model):
        value = field.value
        added = b""
        if field.number == _PIECE and hides_symbols and isinstance(value, bytes) and _is_symbol(value):
            added = _UNUSED
        elif field.number == _NORMALIZER:
            added, has_normalizer = normalizer, True
        unchanged = model[field.start : field.end]
        parts.append(_message(field.number, value + added) if added and isinstance(value, bytes) else unchanged)
    if not has_normalizer and normalizer:
        parts.append(_message(_NORMALIZER, normalizer))
    return b"".join(parts)


def symbols(model: bytes) -> dict[str, int]:
    """Returns the user-defined symbols of a model other than white space, with their ids."""
    pieces = [field.value for field in _fields(model) if field.number == _PIECE]
    found = {token: piece for token, piece in enumerate(pieces) if isinstance(piece, bytes) and _is_symbol(piece)}
    return {_text_of(piece): token for token, piece in found.items()}


def spans(result: bytes) -> list[tuple[int, int, int]]:
    """Returns id, first character and end of each piece of a serialized result."""
    found, end = [], 0
    for field in _fields(result):
        if field.number == _PIECES and isinstance(field.value, bytes):
            piece = {part.number: part.value for part in _fields(field.value)}
            surface = piece.get(_SURFACE, b"")
            assert isinstance(surface, bytes)
            start, end = end, end + len(surface.decode())
            found.append((int(piece.get(_ID, 0)), start, end))
    return found


def _is_symbol(piece: bytes) -> bool:
    kind = [field.value for field in _fields(piece) if field.number == _TYPE]
    return kind[-1:] == [_USER_DEFINED] and not _text_of(piece).replace("▁", " ").isspace()


def _text_of(piece: bytes) -> str:
    text = next(field.value for field in _fields(piece) if field.number == _TEXT)
    assert isinstance(text, bytes)
    return text.decode()


def _fields(message: bytes) -> Iterator[Field]:
    position = 0
    while position < len(message):
        start = position
        tag, position = _varint(message, position)
        value: int | bytes
        if tag & 7 == _LENGTH_DELIMITED:
            length, position = _varint(message, position)
            value = message[position : position + length]
            position += length
        elif tag & 7 == 0:
            value, position = _varint(message, position)
        else:
            size = 4 if tag & 7 == 5 else 8
            value = message[position : position + size]
            position += size
        yield Field(tag >> 3, value, start, position)


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = message[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position


def _message(number: int, content: bytes) -> bytes:
    size, length = len(content), b""
    while size >= 128:
        length += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | _LENGTH_DELIMITED]) + length + bytes([size]) + content
