"""Loss of a model on texts."""

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from ml.data import Document
from ml.data.sequences.document_begin import Begin
from ml.data.tokenizers import Tokenizer
from ml.models.language_model import LanguageModel
from ml.training.evaluation.scoring import score, windows
from ml.training.precision import Precision


class TextLoss(NamedTuple):
    """Loss of a text.

    Attributes:
        name: The name of the text.
        num_tokens: Number of predicted tokens.
        num_bytes: Number of UTF-8 bytes of the predicted tokens.
        nats: Sum of the negative log likelihoods.
    """

    name: str
    num_tokens: int
    num_bytes: int
    nats: float

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.num_tokens

    @property
    def perplexity(self) -> float:
        """Perplexity per token; not comparable across tokenizers."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """Bits per UTF-8 byte; comparable across tokenizers."""
        return self.nats / math.log(2) / self.num_bytes

    def describe(self) -> dict[str, Any]:
        """Returns all metrics as JSON values."""
        return {
            "name": self.name,
            "tokens": self.num_tokens,
            "bytes": self.num_bytes,
            "loss": self.loss,
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
        }


def measure_texts(
    documents: Iterable[Document],
    model: LanguageModel,
    tokenizer: Tokenizer,
    begin: Begin,
    *,
    context: int,
    stride: int,
    batch_size: int,
    precision: Precision,
    device: torch.device,
) -> Iterator[TextLoss]:
    """Yields the loss of each document, with every token predicted once (see `windows`).

    The first token of a document is predicted from the begin of documents, as in training. Without one it is not
    predicted and not counted. Documents without a predicted token are skipped.

    Args:
        documents: The documents.
        model: The model, in evaluation mode.
        tokenizer: The tokenizer of the run.
        begin: The begin of documents; may be empty.
        context: Maximum number of tokens that a prediction is conditioned on.
        stride: Number of tokens that each window after the first predicts.
        batch_size: Windows per forward pass.
        precision: The precision of the forward pass.
        device: The device of the model.
    """
    start = begin.tokens
    for document in documents:
        text = tokenizer.encode(document.text)
        predicted = text if len(start) else text[1:]
        if len(predicted) == 0:
            continue
        # The last token of a longer separator is enough.
        tokens = np.concatenate((start[-1:].astype(np.int64), text))
        scores = score(model, list(windows(tokens, context, stride)), batch_size, precision, device)
        nats = -math.fsum(one.log_likelihood for one in scores)
        yield TextLoss(document.name, len(predicted), tokenizer.num_bytes(predicted), nats)


def total(losses: Iterable[TextLoss]) -> TextLoss:
    """Returns the loss over all texts, weighted by tokens."""
    losses = list(losses)
    return TextLoss(
        "all",
        sum(loss.num_tokens for loss in losses),
        sum(loss.num_bytes for loss in losses),
        math.fsum(loss.nats for loss in losses),
    )
