"""Context parallel: each rank of an axis computes one stretch of every sequence.

What a mixer would get from its cache while decoding comes from the ranks before: attention gathers their keys and
values, or the latent vectors that stand for them, and a recurrent mixer receives the state after the previous stretch.
No layer knows of it. Everything else in the model treats every position by itself.

Costs. Attention exchanges 2 (n - 1) / n of the keys and values of a sequence in each pass; in a window that reaches no
further than the previous rank, its last keys only. A block that is computed again in the backward pass gathers again.
With stretches in order the last rank computes more of the masked scores than the first. A recurrent mixer of rank r
starts its recurrence when rank r - 1 has ended its own: the ranks follow each other through the layers, so that a pass
without attention takes n - 1 recurrences of one layer longer, not of every layer.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from ml.distributed.collectives import Gather
from ml.distributed.neighbors import Neighbors
from ml.distributed.rules import Rule, find_rule
from ml.layers.context import Auxiliary, Cache, Context
from ml.layers.loss import LossSums, Teacher
from ml.layers.protocol import Mixer
from ml.layers.rotary import DynamicRotary, RotaryEmbedding
from ml.models.declarations import mixers_of
from ml.models.language_model import LanguageModel


def context_parallel(model: LanguageModel, axis: DeviceMesh) -> None:
    """Replaces `model.loss` by the loss of this rank's stretch of the same sequences.

    The sums over the ranks of the losses, and of the gradients, are those of the whole sequences. The load-balancing
    losses of routers are those of each stretch.

    Args:
        model: The model, before FSDP.
        axis: One-dimensional mesh, in the order of the stretches.

    Raises:
        ValueError: A layer needs more of the sequence than its stretch and the state before it.
    """
    problem = obstacle_to_stretches(model)
    if problem is not None:
        raise ValueError(problem)
    vars(model)["loss"] = LossOfStretch(model, Neighbors(axis))


def obstacle_to_stretches(model: LanguageModel) -> str | None:
    """The layer that cannot compute a stretch of a sequence, and why; None where all can."""
    if model.image_token_id is not None:
        return f"{type(model).__name__} reads images, which Mesh.context would cut: it must be 1"
    for path, module in mixers_of(model.mixing_children()):
        if (problem := _obstacle(module)) is not None:
            return f"{path} ({type(module).__name__}) {problem}"
    for path, module in model.named_modules():
        if isinstance(module, RotaryEmbedding) and module.depends_on_length and not isinstance(module, DynamicRotary):
            return f"{path} ({type(module).__name__}) rotates by the length of its sequence: Mesh.context must be 1"
    return None


def _obstacle(mixer: nn.Module) -> str | None:
    rule = find_rule(type(mixer))
    if rule is None or rule.context is None:
        return "has no rule for a stretch of a sequence: register one with `context`, or leave Mesh.context at 1"
    if isinstance(mixer, Mixer) and mixer.causal is False:
        return "sees later positions, which are on other ranks: Mesh.context must be 1"
    return None


class LossOfStretch:
    """The loss of a model on this rank's stretch of its sequences; stands for `LanguageModel.loss`.

    Args:
        model: The model.
        neighbors: The ranks that have the other stretches.
    """

    def __init__(self, model: LanguageModel, neighbors: Neighbors):
        self.model = model
        self.neighbors = neighbors

    def __call__(
        self,
        tokens: Tensor,
        targets: Tensor,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        teacher: Teacher | None = None,
    ) -> LossSums:
        """Returns the sums over this stretch of the sequences (B, T); the arguments are those of the whole.

        Raises:
            ValueError: The sequences cannot be divided into equal stretches.
        """
        whole = self.model.context(tokens, positions, documents, targets=targets)
        context = ContextOfStretch(whole, tokens, self.neighbors)
        mine = context.stretch
        if teacher is not None:
            teacher = teacher._replace(logits=teacher.logits[:, mine])
        sums = self.model.loss_in_context(tokens[:, mine], targets[:, mine], context, teacher)
        return sums._replace(total=context.close(sums.total))


class ContextOfStretch(Context):
    """The context of a pass over this rank's stretch of longer sequences.

    Args:
        whole: The context of the whole sequences.
        tokens: The whole sequences, (B, T).
        neighbors: The ranks that have the other stretches.

    Attributes:
        stretch: The positions of the stretch in the sequence.

    Raises:
        ValueError: The sequences cannot be divided into equal stretches.
    """

    def __init__(self, whole: Context, tokens: Tensor, neighbors: Neighbors):
        batch_size, length = tokens.shape
        if problem := obstacle_to_length(length, neighbors.size):
            raise ValueError(problem)
        size = length // neighbors.size
        self.stretch = slice(neighbors.rank * size, (neighbors.rank + 1) * size)
        positions = torch.arange(length, device=tokens.device) if whole.positions is None else whole.positions
        whole, documents, padding = Context(positions, whole.documents), whole.documents, whole.padding
        before = Cache()
        before.advance(self.stretch.start, None if documents is None else documents[:, : self.stretch.start])
        super().__init__(
            positions[..., self.stretch],
            None if documents is None else documents[:, self.stretch],
            before,
            Auxiliary(),
            padding=None if padding is None else padding[:, self.stretch],
        )
        self._neighbors, self._whole = neighbors, whole
        self._pass = (batch_size, torch.is_grad_enabled(), _autocast_dtype(tokens.device.type))
        self._num_sent: dict[nn.Module, int] = {}
        self._received: dict[nn.Module, list[Tensor]] = {}
        self._sent: list[Tensor] = []
        self._is_closed = False

    @torch.compiler.disable
    def state(self, mixer: nn.Module) -> Any:
        """The keys of earlier stretches, or the state after the previous one, whichever the mixer's rule names."""
        rule = _rule_of(mixer)
        if rule.context == "keys":
            return EarlierKeys(self._neighbors, rule.reach(mixer))
        if self._neighbors.is_first:
            return None
        if self._is_closed:
            return self._received_again(mixer)
        received = self._received.setdefault(mixer, [])
        received.append(self._neighbors.receive((mixer, len(received), *self._pass)))
        return received[-1]

    @torch.compiler.disable
    def keep(self, mixer: nn.Module, state: Any) -> None:
        """Sends the state after this stretch to the next rank."""
        if self._neighbors.is_last or self._is_closed or _rule_of(mixer).context == "keys":
            return
        number = self._num_sent.get(mixer, 0)
        self._num_sent[mixer] = number + 1
        sent = self._neighbors.send((mixer, number, *self._pass), state)
        if sent.requires_grad:
            self._sent.append(sent)

    def lengths(self) -> Tensor | None:
        """Lengths of the whole sequences, or documents, of the tokens of the stretch."""
        lengths = self._whole.lengths()
        if lengths is None or self.documents is None:
            return lengths
        return lengths[:, self.stretch]

    @torch.compiler.disable
    def later(self, values: Tensor, fill: int = 0) -> Tensor:
        """`values` (B, T, ...) of one position later; the last one is the first of the next rank."""
        return self._neighbors.later(values, 1, fill)

    def close(self, output: Tensor) -> Tensor:
        """Ends the forward pass.

        Args:
            output: A result of the pass that every gradient passes.

        Returns:
            `output`, whose backward pass also receives the gradients of the states that were sent.
        """
        self._is_closed = True
        self._neighbors.settle()
        return _Attached.apply(output, *self._sent) if self._sent else output

    def _received_again(self, mixer: nn.Module) -> Tensor:
        """The state of a block that is computed again. Blocks that share a mixer are so in the reverse order."""
        received = self._received[mixer].pop()
        return received.detach().requires_grad_(received.requires_grad)


class EarlierKeys:
    """Keys and values of the ranks before, in the place of `Growing`.

    Args:
        neighbors: The ranks that have the other stretches.
        reach: Number of keys before its own position that a query sees; None is all.
    """

    def __init__(self, neighbors: Neighbors, reach: int | None):
        self.neighbors = neighbors
        self.reach = reach

    @torch.compiler.disable
    def append(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Puts before each tensor, along time, what earlier positions have there: (B, K, T, D) to (B, K, S, D)."""
        return tuple(self._with_earlier(tensor) for tensor in tensors)

    def _with_earlier(self, tensor: Tensor) -> Tensor:
        length = tensor.shape[_TIME_OF_KEYS]
        if self.reach == 0:
            return tensor
        if self.reach is not None and self.reach <= length:
            return self.neighbors.with_previous(tensor, _TIME_OF_KEYS, self.reach)
        gathered = Gather.apply(tensor, _TIME_OF_KEYS, self.neighbors.group.group_name)
        end = (self.neighbors.rank + 1) * length
        start = 0 if self.reach is None else max(end - length - self.reach, 0)
        return gathered.narrow(_TIME_OF_KEYS, start, end - start)


_TIME_OF_KEYS = 2


class _Attached(torch.autograd.Function):
    """Identity of the first argument; the backward pass reaches the others too."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, *others: Tensor) -> Tensor:
        ctx.others = [other.new_zeros(()) for other in others]
        return output.clone()  # no view, of which FSDP warns

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return gradient, *ctx.others


def obstacle_to_length(sequence_length: int, num_stretches: int) -> str | None:
    """Returns the reason that a sequence cannot be divided into equal stretches; None where it can."""
    if sequence_length % num_stretches == 0:
        return None
    return f"Trainer.sequence_length ({sequence_length}) is not divisible by Mesh.context ({num_stretches})"


def _rule_of(mixer: nn.Module) -> Rule:
    rule = find_rule(type(mixer))
    assert rule is not None  # see `obstacle_to_stretches`
    return rule


def _autocast_dtype(device: str) -> torch.dtype | None:
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
