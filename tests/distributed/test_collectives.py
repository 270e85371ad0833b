"""Collectives and their gradients against sums and slices of the tensors of all ranks."""

import torch
from processes import run_ranks
from torch.distributed.device_mesh import init_device_mesh

from ml.distributed.collectives import Copy, Gather, Join, ReduceScatter, Sum

NUM_RANKS = 3


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def results_of(operation, x, factor):
    """Value and gradient of (factor · operation(x)).sum()."""
    x = x.clone().requires_grad_()
    y = operation(x)
    (factor * y).sum().backward()
    return y.detach(), x.grad


def gradients(world):
    group = init_device_mesh("cpu", (world.size,)).get_group().group_name
    rank = world.rank
    xs = [drawn(other, 2, 6, 4) for other in range(world.size)]  # of all ranks
    factors = [drawn(10 + other, 2, 6, 4) for other in range(world.size)]
    wide = [drawn(20 + other, 2, 18, 4) for other in range(world.size)]
    narrow = [drawn(30 + other, 2, 2, 4) for other in range(world.size)]

    # Every rank has the same x and uses it in its own way: the loss is the sum over the ranks.
    y, gradient = results_of(lambda x: Copy.apply(x, group), xs[0], factors[rank])
    torch.testing.assert_close((y, gradient), (xs[0], sum(factors)))
    # All ranks use the sum in the same way: the loss is that of one of them.
    y, gradient = results_of(lambda x: Sum.apply(x, group), xs[rank], factors[0])
    torch.testing.assert_close((y, gradient), (sum(xs), factors[0]))

    mine = slice(6 * rank, 6 * rank + 6)
    y, gradient = results_of(lambda x: Gather.apply(x, 1, group), xs[rank], wide[rank])
    torch.testing.assert_close((y, gradient), (torch.cat(xs, 1), sum(wide)[:, mine]))

    mine = slice(2 * rank, 2 * rank + 2)
    y, gradient = results_of(lambda x: ReduceScatter.apply(x, 1, group), xs[rank], narrow[rank])
    torch.testing.assert_close((y, gradient), (sum(xs)[:, mine], torch.cat(narrow, 1)))

    sizes = (3, 3, 1)
    parts = xs[0].flatten(1)[:, :7].split(sizes, dim=-1)
    y, gradient = results_of(lambda x: Join.apply(x, sizes, rank, group), parts[rank], factors[0].flatten(1)[:, :7])
    torch.testing.assert_close(y, torch.cat(parts, -1))
    torch.testing.assert_close(gradient, factors[0].flatten(1)[:, :7].split(sizes, dim=-1)[rank])


def test_values_and_gradients():
    run_ranks(NUM_RANKS, gradients)
