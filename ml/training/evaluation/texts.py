"""The loss of a model on texts."""

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from ml.data import Document
from ml.data.sequences.document_separator import Separator
from ml.data.tokenizers import Tokenizer
from ml.models.language_model import LanguageModel
from ml.training.evaluation.scoring import score, windows
from ml.training.precision import Precision


class TextLoss(NamedTuple):
    """What predicting a text cost."""

    name: str
    num_tokens: int  # that were predicted
    num_bytes: int  # of UTF-8 that they stand for
    nats: float

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.num_tokens

    @property
    def perplexity(self) -> float:
        """Per token; it cannot be compared across tokenizers."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.num_bytes

    def describe(self) -> dict[str, Any]:
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
    separator: Separator,
    *,
    context: int,
    stride: int,
    batch_size: int,
    precision: Precision,
    device: torch.device,
) -> Iterator[TextLoss]:
    """Yields the loss of each document by itself, its tokens predicted once each, as `windows` says.

    A document begins behind a separator, as in training, from which its first token is predicted. Without one nothing
    predicts the first token, and it is not counted. What is empty then is left out.
    """
    start = separator.tokens
    for document in documents:
        text = tokenizer.encode(document.text)
        predicted = text if len(start) else text[1:]
        if len(predicted) == 0:
            continue
        # Of a separator of several tokens the last one is enough.
        tokens = np.concatenate((start[-1:].astype(np.int64), text))
        scores = score(model, list(windows(tokens, context, stride)), batch_size, precision, device)
        nats = -math.fsum(one.log_likelihood for one in scores)
        yield TextLoss(document.name, len(predicted), tokenizer.num_bytes(predicted), nats)


def total(losses: Iterable[TextLoss]) -> TextLoss:
    """All texts together, each token counted alike."""
    losses = list(losses)
    return TextLoss(
        "all",
        sum(loss.num_tokens for loss in losses),
        sum(loss.num_bytes for loss in losses),
        math.fsum(loss.nats for loss in losses),
    )
