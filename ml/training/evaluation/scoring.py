"""How likely a model finds tokens, given those before them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ml.models.language_model import LanguageModel
from ml.training.precision import Precision

_LOGITS_AT_ONCE = 2**24  # 64 MiB in float32


class Piece(NamedTuple):
    """Tokens (n + 1), of which the last `num_scored` are predicted, each from those before it; the last is not read."""

    tokens: np.ndarray
    num_scored: int


class Score(NamedTuple):
    """Of the tokens of a piece that are predicted."""

    log_likelihood: float  # their sum, in nats: at most 0
    is_greedy: bool  # whether each of them is the likeliest


def windows(tokens: np.ndarray, context: int, stride: int) -> Iterator[Piece]:
    """Cuts tokens (n + 1) so that all but the first are predicted, each once, from `context` tokens at most.

    The first window predicts all that it reads, each later one `stride` tokens more: those are predicted from
    context - stride + 1 tokens at least. The last window reaches back as far as the others.
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
    """Scores each piece; pieces of like length go through the model together, filled up on the right."""
    scores: list[Score | None] = [None] * len(pieces)
    order = sorted(range(len(pieces)), key=lambda index: -len(pieces[index].tokens))
    for first in range(0, len(order), batch_size):
        indices = order[first : first + batch_size]
        with precision.autocast(device):
            batch = _score_batch(model, [pieces[index] for index in indices], device)
        for index, likelihood, is_greedy in zip(indices, *batch, strict=True):
            scores[index] = Score(likelihood, is_greedy)
    return scores


def _score_batch(model: LanguageModel, pieces: Sequence[Piece], device: torch.device) -> tuple[list[float], list[bool]]:
    longest = max(len(piece.tokens) for piece in pieces)
    rows = np.zeros((len(pieces), longest), dtype=np.int64)
    is_scored = np.zeros((len(pieces), longest - 1), dtype=bool)  # by the place of what it is predicted from
    for row, (tokens, num_scored) in enumerate(pieces):
        rows[row, : len(tokens)] = tokens
        is_scored[row, len(tokens) - 1 - num_scored : len(tokens) - 1] = True
    tokens = torch.from_numpy(rows).to(device)
    of_rows, places = (torch.from_numpy(numbers).to(device) for numbers in is_scored.nonzero())
    read = tokens[:, :-1]
    context = model.context(read)
    hidden = model.decoder(model.embed(read, context), context)[of_rows, places]  # (n, H)
    likelihoods, is_likeliest = _predicted(model, hidden, tokens[of_rows, places + 1])
    sums = torch.zeros(len(pieces), dtype=torch.float64, device=device).index_add_(0, of_rows, likelihoods)
    misses = torch.zeros(len(pieces), dtype=torch.int64, device=device).index_add_(0, of_rows, (~is_likeliest).long())
    return sums.tolist(), (misses == 0).tolist()


def _predicted(model: LanguageModel, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Of targets (n) after `hidden` (n, H): their log likelihoods, float64, and whether each is the likeliest."""
    likelihoods, is_likeliest = [], []
    at_once = max(1, _LOGITS_AT_ONCE // model.vocab_size)
    for part, wanted in zip(hidden.split(at_once), targets.split(at_once), strict=True):
        logits = model.head(part, model.tied_weight).float()
        found = logits.gather(-1, wanted[:, None])[:, 0]
        likelihoods.append((found - logits.logsumexp(-1)).double())
        is_likeliest.append(logits.argmax(-1) == wanted)
    return torch.cat(likelihoods), torch.cat(is_likeliest)
