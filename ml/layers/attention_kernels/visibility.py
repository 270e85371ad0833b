"""The keys that a query sees."""

import torch
from torch import Tensor


def visible_keys(
    num_queries: int,
    num_keys: int,
    causal: bool,
    window_size: int | None,
    documents: Tensor | None,
    device: torch.device,
) -> Tensor:
    """Returns (T, S), or (B, 1, T, S) for documents: true where the query of the row may see the key of the column."""
    places = torch.arange(num_keys, device=device)
    distance = places[num_keys - num_queries :, None] - places  # of the key before the query
    visible = torch.ones_like(distance, dtype=torch.bool)
    if causal:
        visible &= distance >= 0
    if window_size is not None:
        visible &= distance.abs() < window_size
    if documents is None:
        return visible
    same = documents[:, num_keys - num_queries :, None] == documents[:, None, :]  # (B, T, S)
    return (visible & same)[:, None]


def mean_visible_keys(sequence_length: int, causal: bool, window_size: int | None) -> float:
    """Mean number of keys that a query sees in a sequence of one document."""
    reach = min(window_size or sequence_length, sequence_length)
    behind = reach * sequence_length - reach * (reach - 1) / 2  # pairs at a distance of 0 to reach - 1
    pairs = behind if causal else 2 * behind - sequence_length
    return pairs / sequence_length


def document_ends(documents: Tensor) -> tuple[Tensor, Tensor]:
    """The first position of the document of each token, and the position after its last: (B, S) each."""
    places = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    changes = documents[:, 1:] != documents[:, :-1]  # between a token and the next
    first = places.masked_fill(torch.nn.functional.pad(~changes, (1, 0), value=False), 0).cummax(1).values
    after = torch.nn.functional.pad(changes, (0, 1), value=True)
    end = (places + 1).masked_fill(~after, documents.shape[1]).flip(1).cummin(1).values.flip(1)
    return first, end
