"""Tokenizers: text to token ids and back."""

from ml.data.tokenizers.base import SavedArguments, SpecialToken, Tokenizer, TokenSpans
from ml.data.tokenizers.bytes import ByteTokenizer
from ml.data.tokenizers.hugging_face import HuggingFaceTokenizer
from ml.data.tokenizers.sentence_piece import SentencePieceTokenizer
from ml.data.tokenizers.tiktoken import TiktokenTokenizer

__all__ = [
    "ByteTokenizer",
    "HuggingFaceTokenizer",
    "SavedArguments",
    "SentencePieceTokenizer",
    "SpecialToken",
    "TiktokenTokenizer",
    "TokenSpans",
    "Tokenizer",
]
