"""Text in, batches out: corpora, tokenizers, and the order in which sequences are drawn."""

from ml.data.batch import Batch
from ml.data.corpus import Document, TextFiles
from ml.data.errors import DataError
from ml.data.sampling import RandomWindows, ShuffledEpochs
from ml.data.text import TextData, TokenDataset
from ml.data.tokenizers import ByteTokenizer

__all__ = [
    "Batch",
    "ByteTokenizer",
    "DataError",
    "Document",
    "RandomWindows",
    "ShuffledEpochs",
    "TextData",
    "TextFiles",
    "TokenDataset",
]
