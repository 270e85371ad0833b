"""Blocks, and the sequences that stack them."""

from ml.blocks.decoder_block import DecoderBlock
from ml.blocks.repeat import Repeat

__all__ = ["DecoderBlock", "Repeat"]
