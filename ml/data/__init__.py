"""Data pipeline: corpora, tokenizers, token files, and the sampling of sequences and batches."""

from ml.data.chat.chatml import ChatML
from ml.data.chat.jinja_template import JinjaTemplate
from ml.data.chat.role_markers import RoleMarkers
from ml.data.chat.template import ChatTemplate
from ml.data.corpora.chat_files import ChatCorpus, ChatFiles
from ml.data.corpora.image_files import CaptionedImage, ImageCorpus, ImageTextFiles
from ml.data.corpora.preference_files import PreferenceCorpus, PreferenceFiles
from ml.data.corpora.synthetic_shapes import Shapes
from ml.data.corpora.text_files import TextFiles
from ml.data.datasets.chat import ChatData
from ml.data.datasets.concatenation import Concatenation
from ml.data.datasets.dataset import Data, Dataset, ImageFormat
from ml.data.datasets.images import ImageTextData, ImageTextDataset
from ml.data.datasets.mixture import Mixture
from ml.data.datasets.preferences import PreferenceData
from ml.data.datasets.text import TextData
from ml.data.datasets.token_data import TokenFiles
from ml.data.datasets.token_dataset import TokenDataset
from ml.data.errors import DataError
from ml.data.reading.documents import Document
from ml.data.sequences.batch import Batch
from ml.data.sequences.fill_in_the_middle import FillInTheMiddle
from ml.data.sequences.packing import PackedDocuments
from ml.data.sequences.sampling import RandomWindows, Sampling, ShuffledEpochs
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
    "JinjaTemplate",
    "Mixture",
    "PackedDocuments",
    "PreferenceCorpus",
    "PreferenceData",
    "PreferenceFiles",
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
