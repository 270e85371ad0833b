"""Log likelihoods of tokens under a model."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ml.models.language_model import LanguageModel
from ml.targets import IGNORED
from ml.training.precision import Precision

_LOGITS_AT_ONCE = 2**24  # 64 MiB in float32


class Piece(NamedTuple):
    """Tokens (n + 1), of which the last `num_scored` are predicted from the tokens before them."""

    tokens: np.ndarray
    num_scored: int


class Score(NamedTuple):
    """Score of the predicted tokens of a piece.

    Attributes:
        log_likelihood: Sum over the tokens, in nats.
        is_greedy: Whether each token is the most likely one.
    """

    log_likelihood: float
    is_greedy: bool


def windows(tokens: np.ndarray, context: int, stride: int) -> Iterator[Piece]:
    """Splits tokens into windows that predict every token but the first exactly once.

    The first window predicts all of its tokens, each later one its last `stride` tokens, from at least
    context - stride + 1 tokens. The last window is as long as the others and may predict fewer tokens.

    Args:
        tokens: (n + 1) tokens.
        context: Maximum number of tokens that a prediction is conditioned on.
        stride: Number of tokens that each later window predicts.

    Yields:
        The windows, in order.
    """
    end = 0
    while end < len(tokens) - 1:
        num_scored = min(stride if end else context, len(tokens) - 1 - end)
        end += num_scored
        yield Piece(tokens[max(0, end - context) : end + 1], num_scored)


@torch.inference_mode()
def score(
    model: LanguageModel, pieces: Sequence[Piece], batch_size: int, precision: Precision, device: torch.device
) -> list[Score]:
    """Scores pieces in batches of similar length, padded on the right.

    Args:
        model: The model, in evaluation mode.
        pieces: The pieces to score.
        batch_size: Pieces per forward pass.
        precision: The precision of the forward pass.
        device: The device of the model.

    Returns:
        The score of each piece, in order.
    """
    scores: dict[int, Score] = {}
    order = sorted(range(len(pieces)), key=lambda index: -len(pieces[index].tokens))
    for first in range(0, len(order), batch_size):
        indices = order[first : first + batch_size]
        with precision.autocast(device):
            batch = _score_batch(model, [pieces[index] for index in indices], device)
        for index, likelihood, is_greedy in zip(indices, *batch, strict=True):
            scores[index] = Score(likelihood, is_greedy)
    return [scores[index] for index in range(len(pieces))]


def _score_batch(model: LanguageModel, pieces: Sequence[Piece], device: torch.device) -> tuple[list[float], list[bool]]:
    longest = max(len(piece.tokens) for piece in pieces)
    rows = np.zeros((len(pieces), longest), dtype=np.int64)
    is_scored = np.zeros((len(pieces), longest - 1), dtype=bool)  # by the position it is predicted from
    for row, (piece, num_scored) in enumerate(pieces):
        rows[row, : len(piece)] = piece
        is_scored[row, len(piece) - 1 - num_scored : len(piece) - 1] = True
    tokens = torch.from_numpy(rows).to(device)
    of_rows, positions = (torch.from_numpy(indices).to(device) for indices in is_scored.nonzero())
    read = tokens[:, :-1]
    targets = tokens[:, 1:].where(torch.from_numpy(is_scored).to(device), IGNORED)
    context = model.context(read, targets=targets)
    hidden = model.decoder(model.embed(read, context), context)[of_rows, positions]  # (n, H)
    likelihoods, is_most_likely = _predicted(model, hidden, tokens[of_rows, positions + 1])
    sums = torch.zeros(len(pieces), dtype=torch.float64, device=device).index_add_(0, of_rows, likelihoods)
    misses = torch.zeros(len(pieces), dtype=torch.int64, device=device).index_add_(0, of_rows, (~is_most_likely).long())
    return sums.tolist(), (misses == 0).tolist()


def _predicted(model: LanguageModel, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the log likelihoods (n), float64, of targets (n) given `hidden` (n, H), and whether each is greedy."""
    likelihoods, is_most_likely = [], []
    at_once = max(1, _LOGITS_AT_ONCE // model.vocab_size)
    for part, wanted in zip(hidden.split(at_once), targets.split(at_once), strict=True):
        logits = model.head(part, model.tied_weight).float()
        found = logits.gather(-1, wanted[:, None])[:, 0]
        likelihoods.append((found - logits.logsumexp(-1)).double())
        is_most_likely.append(logits.argmax(-1) == wanted)
    return torch.cat(likelihoods), torch.cat(is_most_likely)
