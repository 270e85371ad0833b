"""Tokenizers of the library `tokenizers`, the format of Hugging Face checkpoints."""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ml.config import REQUIRED, configurable
from ml.data.errors import DataError
from ml.data.tokenizers.base import SavedArguments, SpecialToken, Tokenizer, TokenSpans
from ml.data.tokenizers.byte_level import bytes_of_pieces
from ml.data.tokenizers.definition import Definition
from ml.data.tokenizers.token_bytes import TokenBytes
from ml.data.tokenizers.tokenizer_config import CONFIG_FILE, TokenizerConfig
from ml.data.tokenizers.unknown import UnknownCounter, unknown_counter
from ml.data.tokenizers.word_ends import WORD_END, is_cut_at_word_ends
from ml.optional import optional_import

if TYPE_CHECKING:
    import tokenizers

_FILE = "tokenizer.json"
_DECIDING = ("type", "unk_token", "byte_fallback", "ignore_merges")  # of a model, besides vocabulary and merges
_USUAL_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")


@configurable
class HuggingFaceTokenizer(Tokenizer):
    """Tokenizer in a tokenizer.json.

    Special tokens in text are not recognized, none are added, and the file's padding and truncation are disabled.

    Args:
        path: The file, or a folder with a tokenizer.json.
        end_of_document: Special token after each document. None is the `eos_token` of a tokenizer_config.json beside
            the file, otherwise a common one such as "<|endoftext|>", otherwise none.
        begin_of_document: Special token before each document; "" for none. None is the `bos_token` of a
            tokenizer_config.json beside the file, unless its `add_bos_token` is false.
        added_tokens: Special tokens to add after the vocabulary, in this order; those that the file has keep their ids.
        post_processor: True takes from the file's post-processor the special tokens with which documents begin and
            end, where it adds any.
    """

    def __init__(
        self,
        path: str = REQUIRED,
        end_of_document: str | None = None,
        begin_of_document: str | None = None,
        added_tokens: Sequence[str] = (),
        post_processor: bool = False,
    ):
        self.path = path
        self._end_of_document = end_of_document
        self._begin_of_document = begin_of_document
        self._added_tokens = list(added_tokens)
        self._post_processor = post_processor

    @property
    def source(self) -> str:  # type: ignore[override]
        """The file."""
        return str(self._file)

    @functools.cached_property
    def vocab_size(self) -> int:
        """Exclusive upper bound of the token ids."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @functools.cached_property
    def end_of_document(self) -> int | None:
        """Token after each document."""
        name = self._end_name
        return None if name is None else self._tokenizer.token_to_id(name)

    @functools.cached_property
    def begin_of_document(self) -> int | None:
        """Token before each document."""
        name = self._begin_name
        return None if name is None else self._tokenizer.token_to_id(name)

    @functools.cached_property
    def safe_cut(self) -> re.Pattern[bytes] | None:
        """Ends of words, if normalizer, pattern and added tokens are known to allow cuts there."""
        return WORD_END if _cuts_at_word_ends(self._description) else None

    def encode(self, text: str) -> np.ndarray:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """Returns the tokens of each text, computed on all cores unless TOKENIZERS_PARALLELISM is false."""
        dtype = np.min_scalar_type(self.vocab_size - 1)
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype) for encoding in encodings]

    def decode(self, tokens: np.ndarray) -> str:
        return self._tokenizer.decode(np.asarray(tokens).tolist(), skip_special_tokens=False)

    def num_bytes(self, tokens: np.ndarray) -> int:
        """Returns the number of bytes of the tokens; a space that the tokenizer prepends counts.

        Raises:
            DataError: Tokens of this tokenizer do not represent fixed bytes.
        """
        return self._bytes.num_bytes(tokens)

    def num_unknown(self, text: str, tokens: np.ndarray) -> int:
        """Returns the number of characters that are dropped, or of tokens for unknown characters."""
        return self._num_unknown(text, tokens)

    @functools.cached_property
    def _num_unknown(self) -> UnknownCounter:
        return unknown_counter(self._tokenizer, self._description)

    def encode_with_spans(self, text: str, is_start: bool) -> TokenSpans:
        tokenizer = self._tokenizer if is_start else self._continuing
        encoding = tokenizer.encode(text, add_special_tokens=False)
        spans = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        return TokenSpans(np.array(encoding.ids, np.min_scalar_type(self.vocab_size - 1)), spans[:, 0], spans[:, 1])

    def encode_parts(self, parts: Sequence[tuple[str, bool]]) -> list[np.ndarray]:
        starts = [text for text, is_start in parts if is_start]
        others = [text for text, is_start in parts if not is_start]
        dtype = np.min_scalar_type(self.vocab_size - 1)
        following = self._continuing.encode_batch_fast(others, add_special_tokens=False)
        of_start, of_others = iter(self.encode_batch(starts)), (np.array(one.ids, dtype) for one in following)
        return [next(of_start if is_start else of_others) for _, is_start in parts]

    @functools.cached_property
    def control_tokens(self) -> Mapping[str, SpecialToken]:
        """Special tokens by their text."""
        added = self._tokenizer.get_added_tokens_decoder()
        return {
            str(entry.content): SpecialToken(token, entry.lstrip, entry.rstrip)
            for token, entry in added.items()
            if entry.special
        }

    @property
    def folder(self) -> Path:
        """Folder of the file."""
        return self._file.parent

    def save(self, folder: Path) -> SavedArguments:
        (folder / _FILE).write_text(self._content, encoding="utf-8", newline="")
        begin = {} if self._begin_name is None else {"begin_of_document": self._begin_name}
        added = {"added_tokens": self._added_tokens} if self._added_tokens else {}
        return SavedArguments({"end_of_document": self._end_name, **begin, **added}, {"path": _FILE})

    def complete_content(self) -> str:
        """Returns the content of a tokenizer.json that has the added tokens, for other programs."""
        if not self._added_tokens:
            return self._content
        tokenizer = type(self._tokenizer).from_str(self._content)
        self._add_tokens(tokenizer)
        return tokenizer.to_str(pretty=True)

    def definition(self) -> Definition:
        """Returns vocabulary, merges, normalizer, pre-tokenizer and special tokens."""
        entries, special = self._tokenizer.get_vocab(with_added_tokens=True), self._special
        last = max((token for token in entries.values() if token not in special), default=-1)
        model, content = self._description["model"], json.loads(self._content)
        ordinary = {
            "vocabulary": sorted([token, entry] for entry, token in entries.items() if token <= last),
            "special": sorted(token for token in special if token <= last),
            "merges": [pair.split(" ") if isinstance(pair, str) else pair for pair in model.get("merges") or []],
            "scores": model["vocab"] if isinstance(model["vocab"], list) else None,
            "model": {name: model[name] for name in _DECIDING if model.get(name)},
            "rules": [content.get("normalizer"), content.get("pre_tokenizer")],
        }
        return Definition(ordinary, {token: name for token, name in special.items() if token > last})

    @functools.cached_property
    def _content(self) -> str:
        try:
            return self._file.read_bytes().decode("utf-8")
        except OSError as error:
            raise DataError(
                f"cannot read {self._file} (HuggingFaceTokenizer.path, from {Path.cwd()}): {error.strerror}"
            ) from None
        except UnicodeDecodeError:
            raise DataError(f"{self._file} (HuggingFaceTokenizer.path) is not a tokenizer.json") from None

    @property
    def _file(self) -> Path:
        path = Path(self.path)
        return path / _FILE if path.is_dir() else path

    @functools.cached_property
    def _tokenizer(self) -> "tokenizers.Tokenizer":
        tokenizers = optional_import("tokenizers", "tokenizers", "HuggingFaceTokenizer", DataError)
        try:
            tokenizer = tokenizers.Tokenizer.from_str(self._content)
        except Exception as error:  # the library raises plain `Exception`
            if isinstance(error, DataError):
                raise
            raise DataError(f"{self._file} (HuggingFaceTokenizer.path) is not a tokenizer.json: {error}") from None
        if isinstance(tokenizer.model, tokenizers.models.BPE):
            tokenizer.model.dropout = None  # equal text must have equal tokens
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True  # as text
        self._add_tokens(tokenizer)
        return tokenizer

    def _add_tokens(self, tokenizer: "tokenizers.Tokenizer") -> None:
        from tokenizers import AddedToken

        special = {str(entry.content) for entry in tokenizer.get_added_tokens_decoder().values() if entry.special}
        for name in self._added_tokens:
            if name not in special and tokenizer.token_to_id(name) is not None:
                raise DataError(f"HuggingFaceTokenizer.added_tokens: {name!r} is an ordinary token of {self._file}")
            tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False)])

    @functools.cached_property
    def _continuing(self) -> "tokenizers.Tokenizer":
        """The tokenizer for text that follows other text: it prepends no space where only the first text has one."""
        description = json.loads(self._tokenizer.to_str())
        steps = description.get("pre_tokenizer") or {}
        firsts = [step for step in steps.get("pretokenizers", [steps]) if step.get("prepend_scheme") == "first"]
        if not firsts:
            return self._tokenizer
        for step in firsts:
            step["prepend_scheme"] = "never"
        tokenizer = type(self._tokenizer).from_str(json.dumps(description))
        tokenizer.encode_special_tokens = True
        return tokenizer

    @functools.cached_property
    def _description(self) -> dict[str, Any]:
        return json.loads(self._tokenizer.to_str())

    @functools.cached_property
    def _special(self) -> dict[int, str]:
        added = self._tokenizer.get_added_tokens_decoder()
        return {token: str(entry.content) for token, entry in added.items() if entry.special}

    @functools.cached_property
    def _end_name(self) -> str | None:
        self._require_special("end_of_document", self._end_of_document)
        wanted = (self._end_of_document, self._added[1], self._configured("eos_token", "end"), *_USUAL_ENDS)
        return next((name for name in wanted if name in self._special.values()), None)

    @functools.cached_property
    def _begin_name(self) -> str | None:
        if self._begin_of_document == "":
            return None
        self._require_special("begin_of_document", self._begin_of_document)
        is_unused = self._settings.get("add_bos_token") is False
        wanted = (
            self._begin_of_document,
            self._added[0],
            None if is_unused else self._configured("bos_token", "begin"),
        )
        return next((name for name in wanted if name in self._special.values()), None)

    def _configured(self, key: str, border: str) -> str | None:
        """Returns the special token that tokenizer_config.json names for a border of documents."""
        given = self._end_of_document if border == "end" else self._begin_of_document
        name = self._settings.named(key)
        if given is None and name is not None and name not in self._special.values():
            raise DataError(
                f"{self._file.parent / CONFIG_FILE}#{key} is {name!r}, which is not a special token of "
                f"{self._file.name}: set HuggingFaceTokenizer.{border}_of_document, or add it with "
                "HuggingFaceTokenizer.added_tokens"
            )
        return name

    def _require_special(self, parameter: str, name: str | None) -> None:
        special = set(self._special.values())
        if name is not None and name not in special:
            raise DataError(
                f"HuggingFaceTokenizer.{parameter}: {name!r} is not a special token of {self._file}, which has "
                f"{', '.join(sorted(special)) or 'none'}"
            )

    @functools.cached_property
    def _added(self) -> tuple[str | None, str | None]:
        """Special tokens that the post-processor adds before and after a text, if it is asked for."""
        if not self._post_processor:
            return None, None
        text = self._tokenizer.encode("a", add_special_tokens=False).ids
        whole = self._tokenizer.encode("a", add_special_tokens=True).ids
        first = next(start for start in range(len(whole)) if whole[start : start + len(text)] == text)
        before, after = whole[:first], whole[first + len(text) :]
        if not before and not after:
            raise DataError(
                f"{self._file}: the post-processor adds nothing to a text: set HuggingFaceTokenizer.post_processor = "
                "False"
            )
        if len(before) > 1 or len(after) > 1:
            listed = ", ".join(self._special.get(token, str(token)) for token in (*before, *after))
            raise DataError(
                f"{self._file}: the post-processor adds {listed} to a text, and documents have one token at "
                "either end: set HuggingFaceTokenizer.post_processor = False"
            )
        names = [self._special.get(part[0]) if part else None for part in (before, after)]
        return names[0], names[1]

    @functools.cached_property
    def _settings(self) -> TokenizerConfig:
        return TokenizerConfig.beside(self._file)

    @functools.cached_property
    def _bytes(self) -> TokenBytes:
        pieces = bytes_of_pieces(self._tokenizer.get_vocab(with_added_tokens=True), self._description)
        if pieces is None:
            decoder = (self._description.get("decoder") or {}).get("type")
            raise DataError(
                f"{self._file}: tokens of this tokenizer (decoder: {decoder}) do not represent fixed bytes, so bits "
                "per byte are undefined; use a byte-level tokenizer (ByteLevel) or one with byte fallback"
            )
        return TokenBytes(pieces, self._special)


def _cuts_at_word_ends(description: dict[str, Any]) -> bool:
    normalizer = description.get("normalizer") or {"type": "NFC"}
    if normalizer["type"] != "NFC" or any(_may_span_a_word_end(token) for token in description["added_tokens"]):
        return False
    steps = description.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    is_byte_level = steps[-1].get("type") == "ByteLevel" and not steps[-1]["add_prefix_space"]
    if not is_byte_level or len(steps) > 2:
        return False
    if len(steps) == 1:
        return steps[0]["use_regex"]  # GPT-2's
    split, pattern = steps[0], steps[0].get("pattern", {}).get("Regex")
    is_plain = split.get("behavior") == "Isolated" and not split["invert"]
    return is_plain and pattern is not None and is_cut_at_word_ends(pattern)


def _may_span_a_word_end(token: dict[str, Any]) -> bool:
    """Returns True if an added token may contain the end of a word, or depend on what surrounds it."""
    looks_around = token["single_word"] or token["lstrip"] or token["rstrip"]
    return not token["special"] and (looks_around or WORD_END.search(token["content"].encode()) is not None)
