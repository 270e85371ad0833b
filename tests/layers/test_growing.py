"""Growing memory for decoding, compared with a list."""

import pytest
import torch

from ml.layers.mixers.growing import Growing

PIECES = [[1] * 40, [7, 1, 1, 1, 12, 3, 1], [30, 1, 1]]


@pytest.mark.parametrize("kept", [None, 0, 1, 4, 50])
@pytest.mark.parametrize("pieces", PIECES, ids=str)
def test_the_result_is_the_stored_tokens_followed_by_the_new_ones(pieces, kept):
    stream = torch.arange(2 * sum(pieces) * 3.0).view(2, sum(pieces), 3)
    growing, end = Growing(dim=1, kept=kept), 0
    for length in pieces:
        begin = 0 if kept is None else max(0, end - kept)
        end += length
        new = stream[:, end - length : end]
        keys, values = growing.append(new, -new)
        assert torch.equal(keys, stream[:, begin:end])
        assert torch.equal(values, -stream[:, begin:end])


@pytest.mark.parametrize("kept", [None, 16])
def test_a_token_costs_one_copy_on_average(kept, monkeypatch):
    growing, moved = Growing(dim=1, kept=kept), 0
    make_room = Growing._make_room

    def counted(self, tensors, num_new):
        nonlocal moved
        moved += self._end - self._start
        make_room(self, tensors, num_new)

    monkeypatch.setattr(Growing, "_make_room", counted)
    for _ in range(1000):
        (held,) = growing.append(torch.zeros(1, 1, 4))
    assert moved <= 1100
    assert held.untyped_storage().nbytes() <= 4 * 4 * (2048 if kept is None else 3 * kept)
