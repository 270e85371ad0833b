"""Text in, batches out: corpora, tokenizers, and the order in which sequences are drawn."""

from ml.data.batch import Batch
from ml.data.corpus import Document, TextFiles
from ml.data.dataset import Data, Dataset, ImageFormat
from ml.data.errors import DataError
from ml.data.image_files import CaptionedImage, ImageCorpus, ImageTextFiles
from ml.data.images import ImageTextData, ImageTextDataset
from ml.data.sampling import RandomWindows, ShuffledEpochs
from ml.data.shapes import Shapes
from ml.data.text import TextData, TokenDataset
from ml.data.tokenizers import ByteTokenizer

__all__ = [
    "Batch",
    "ByteTokenizer",
    "CaptionedImage",
    "Data",
    "DataError",
    "Dataset",
    "Document",
    "ImageCorpus",
    "ImageFormat",
    "ImageTextData",
    "ImageTextDataset",
    "ImageTextFiles",
    "RandomWindows",
    "Shapes",
    "ShuffledEpochs",
    "TextData",
    "TextFiles",
    "TokenDataset",
]
