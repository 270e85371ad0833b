"""Text in, batches out: corpora, tokenizers, token files, and the order in which sequences are drawn."""

from ml.data.batch import Batch
from ml.data.chat import ChatData
from ml.data.chat_files import ChatCorpus, ChatFiles
from ml.data.chat_templates import ChatML, ChatTemplate, RoleMarkers
from ml.data.concatenation import Concatenation
from ml.data.corpus import Document, TextFiles
from ml.data.dataset import Data, Dataset, ImageFormat
from ml.data.errors import DataError
from ml.data.fill_in_the_middle import FillInTheMiddle
from ml.data.image_files import CaptionedImage, ImageCorpus, ImageTextFiles
from ml.data.images import ImageTextData, ImageTextDataset
from ml.data.mixture import Mixture
from ml.data.packing import PackedDocuments
from ml.data.sampling import RandomWindows, Sampling, ShuffledEpochs
from ml.data.shapes import Shapes
from ml.data.text import TextData
from ml.data.token_data import TokenFiles
from ml.data.token_dataset import TokenDataset
from ml.data.tokenizers import ByteTokenizer, Tokenizer

__all__ = [
    "Batch",
    "ByteTokenizer",
    "CaptionedImage",
    "ChatCorpus",
    "ChatData",
    "ChatFiles",
    "ChatML",
    "ChatTemplate",
    "Concatenation",
    "Data",
    "DataError",
    "Dataset",
    "Document",
    "FillInTheMiddle",
    "ImageCorpus",
    "ImageFormat",
    "ImageTextData",
    "ImageTextDataset",
    "ImageTextFiles",
    "Mixture",
    "PackedDocuments",
    "RandomWindows",
    "RoleMarkers",
    "Sampling",
    "Shapes",
    "ShuffledEpochs",
    "TextData",
    "TextFiles",
    "TokenDataset",
    "TokenFiles",
    "Tokenizer",
]
