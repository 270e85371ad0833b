"""Text to numbers and back."""

from ml.data.tokenizers.base import SavedArguments, Tokenizer
from ml.data.tokenizers.bytes import ByteTokenizer

__all__ = ["ByteTokenizer", "SavedArguments", "Tokenizer"]
