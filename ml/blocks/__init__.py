"""Blocks, and the sequences that stack them."""

from ml.blocks.activation_checkpointing import ActivationCheckpointing, SelectiveActivationCheckpointing
from ml.blocks.chain import Chain
from ml.blocks.decoder_block import DecoderBlock
from ml.blocks.multi_token_prediction import MultiTokenPrediction
from ml.blocks.pattern import Pattern
from ml.blocks.repeat import Repeat
from ml.blocks.sequence import BlockSequence

__all__ = [
    "ActivationCheckpointing",
    "BlockSequence",
    "Chain",
    "DecoderBlock",
    "MultiTokenPrediction",
    "Pattern",
    "Repeat",
    "SelectiveActivationCheckpointing",
]
