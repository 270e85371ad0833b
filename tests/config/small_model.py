"""A small model, built on the meta device, and lookups of the records of its values."""

import torch

from ml.config import Config
from ml.models import LanguageModel

SMALL = """
LanguageModel.vocab_size = 64
LanguageModel.hidden_size = 32
decoder/Repeat.num_blocks = 5
Attention.num_heads = 4
"""


def build_on_meta() -> LanguageModel:
    with torch.device("meta"):
        return LanguageModel()


def values(config: Config, configurable: str, parameter: str) -> dict[str, str]:
    """Returns path -> value, for one parameter of every module that has it."""
    return {
        record.path: record.value
        for record in config.records()
        if (record.configurable, record.parameter) == (configurable, parameter)
    }


def record_of(config: Config, path: str, parameter: str):
    """Returns the record of one parameter at one path, if exactly one module there has it."""
    (found,) = [r for r in config.records() if (r.path, r.parameter) == (path, parameter)]
    return found
