"""A model small enough to look at, built on the meta device, and how to look up who set what in it."""

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
    """path -> value, for one parameter of every module that has it."""
    return {
        record.path: record.value
        for record in config.records()
        if (record.configurable, record.parameter) == (configurable, parameter)
    }


def record_of(config: Config, path: str, parameter: str):
    """The record of one parameter at one path (where one thing is built there that has it)."""
    (found,) = [r for r in config.records() if (r.path, r.parameter) == (path, parameter)]
    return found
