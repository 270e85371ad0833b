"""Memory of a step whose blocks and head are compiled, from that of a step of single operations.

`torch.compile` saves for the backward pass what its partitioner chooses, and recomputes cheap operations instead of
saving their results. The same partitioner runs here on fake tensors. Results within a compiled function are fused or
take the place of saved ones, so they are not counted.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ml.blocks.decoder_block import DecoderBlock
from ml.distributed import Layout
from ml.distributed.estimate.cluster import Cluster
from ml.distributed.estimate.live_memory import LiveMemory
from ml.distributed.estimate.observing import Observed
from ml.layers.context import Context
from ml.layers.head import LanguageModelHead
from ml.layers.mixers.softmax_mixer import SoftmaxMixer
from ml.training.estimate.extrapolation import with_blocks
from ml.training.estimate.measurements import Memory
from ml.training.estimate.tracing import Traced, allocate, batch_of
from ml.training.precision import cast_parameters
from ml.training.trainer import Trainer

_CPU = torch.device("cpu")
logger = logging.getLogger(__name__)


class Saved(NamedTuple):
    """Bytes that a function saves for its backward pass, besides its inputs and results.

    Attributes:
        eager: As single operations.
        compiled: As a compiled function.
    """

    eager: float
    compiled: float


def as_compiled(trainer: Trainer, traced: Traced, kinds: Sequence[Sequence[str]], cluster: Cluster) -> Memory:
    """Returns the memory of a step of a single process with `Trainer.compile`, from that without.

    Blocks whose mixer is a recurrence, and kinds of blocks that cannot be traced, count as single operations.

    Args:
        trainer: The settings of the run.
        traced: A step of single operations.
        kinds: Paths of the blocks, those in one list alike.
        cluster: The machine.
    """
    memory = traced.memory
    attention = {
        path: block for path, block in _one_of_each(trainer.model, kinds) if isinstance(block.mixer, SoftmaxMixer)
    }
    is_whole = _has_whole_loss(trainer) and len(attention) == len(kinds)
    saving = {path for path, block in attention.items() if block.activation_checkpointing is None}
    if not is_whole and not saving:
        return memory
    try:
        blocks, head = _saved(trainer, list(attention if is_whole else saving), is_whole, cluster)
    except Exception as error:  # of a layer that reads values: a forward pass needs all blocks
        _warn(error)
        return memory
    sizes = {kind[-1]: len(kind) for kind in kinds}
    fewer = sum(sizes[path] * (blocks[path].eager - blocks[path].compiled) for path in saving if path in blocks)
    if head is None or len(blocks) < len(attention):
        return memory._replace(activations=memory.activations - fewer)
    fused = memory._replace(activations=memory.activations - fewer - (head.eager - head.compiled), working=0.0)
    recomputed = max((saved.compiled for path, saved in blocks.items() if path not in saving), default=0.0)
    accumulates = trainer.batch_size > trainer.micro_batch_size
    of_update = memory.weights + memory.gradients + memory.optimizer + traced.update_working
    return fused._replace(working=max(recomputed, of_update - fused.peak(accumulates)))


def _warn(error: Exception) -> None:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    _warn_once(f"memory is planned without Trainer.compile for a kind of block that cannot be traced: {reason[0]}")


@functools.cache  # plans of several sizes trace the same blocks
def _warn_once(message: str) -> None:
    logger.warning("%s", message)


def _one_of_each(model: nn.Module, kinds: Sequence[Sequence[str]]) -> Iterator[tuple[str, DecoderBlock]]:
    """Yields a decoder block of each kind, with its path."""
    for kind in kinds:
        if isinstance(block := model.get_submodule(kind[-1]), DecoderBlock):
            yield kind[-1], block


def _has_whole_loss(trainer: Trainer) -> bool:
    """True where the loss is one compiled function of all tokens, which is called once."""
    head = trainer.model.head
    is_plain = isinstance(head, LanguageModelHead) and head.loss_chunk_size is None
    has_guide = trainer.distillation is not None or trainer.preference is not None
    return is_plain and not has_guide and trainer.model.multi_token is None


def _saved(
    trainer: Trainer, paths: Sequence[str], has_head: bool, cluster: Cluster
) -> tuple[dict[str, Saved], Saved | None]:
    """The bytes that blocks with attention save, of those that can be traced, and those of the head with its loss."""
    model = with_blocks(trainer, paths, cluster)
    cast_parameters(model, trainer.precision.parameter_dtype)
    traced = dict(_one_of_each(model, [[path] for path in paths]))
    head = model.head
    calls: dict[nn.Module, tuple[Any, ...]] = {}

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        calls.setdefault(module, args)

    def noted_loss(*args: Any, **options: Any) -> Any:
        note(head, args)
        return type(head).loss(head, *args, **options)

    with FakeTensorMode(allow_non_fake_inputs=True):
        allocate(model)
        model.train()
        handles = [block.register_forward_pre_hook(note) for block in traced.values()]
        vars(head)["loss"] = noted_loss
        with trainer.precision.autocast(_CPU):
            model.loss(**batch_of(trainer, Layout()).inputs)
        del vars(head)["loss"]
    for handle in handles:
        handle.remove()
    found = {}
    for path, block in traced.items():
        try:
            found[path] = _of_block(trainer, block, *calls[block])
        except Exception as error:  # of a layer that reads values, or of torch's tracer
            _warn(error)
    return found, _of_head(trainer, head, *calls[head]) if has_head else None


def _of_block(trainer: Trainer, block: DecoderBlock, x: Tensor, context: Context) -> Saved:
    names = [name for name in ("positions", "documents", "padding") if getattr(context, name) is not None]

    def compute(x: Tensor, *tensors: Tensor) -> Tensor:
        given: dict[str, Any] = dict(zip(names, tensors, strict=True))
        return block.compute(x, Context(num_tokens=context.num_tokens, **given))

    return _measured(
        trainer, block, compute, [x.detach().requires_grad_(), *(getattr(context, name) for name in names)]
    )


def _of_head(trainer: Trainer, head: LanguageModelHead, x: Tensor, targets: Tensor, *tied: Tensor | None) -> Saved:
    weights = [weight for weight in tied if weight is not None]

    def compute(x: Tensor, targets: Tensor, *weights: Tensor) -> Tensor:
        return head.loss(x, targets, weights[0] if weights else None).total

    return _measured(trainer, head, compute, [x.detach().requires_grad_(), targets, *weights])


class _Call(nn.Module):
    """A function of a module as a module."""

    def __init__(self, module: nn.Module, compute: Callable[..., Tensor]):
        super().__init__()
        self.module = module
        self.compute = compute

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.compute(*inputs)


def _measured(trainer: Trainer, module: nn.Module, compute: Callable[..., Tensor], inputs: list[Tensor]) -> Saved:
    """Measures a function of a module by its operations and by torch's partitioner."""
    from torch._functorch.aot_autograd import aot_function
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._inductor.decomposition import select_decomp_table  # takes a second to import

    parameters = dict(module.named_parameters())
    call, count = _Call(module, compute), len(inputs)

    def of_tensors(*tensors: Tensor) -> Tensor:
        own = {f"module.{name}": tensor for name, tensor in zip(parameters, tensors[count:], strict=True)}
        result: Tensor = torch.func.functional_call(call, own, tensors[:count])
        return result

    tensors = [*inputs, *parameters.values()]
    compiled: list[float] = []

    def note(gm: Any, example_inputs: Any) -> Any:  # the names are torch's
        compiled.append(_bytes_saved(gm, num_results=1))
        return gm

    with trainer.precision.autocast(_CPU):
        live = LiveMemory(tensors)
        with Observed(live):
            result = of_tensors(*tensors)
        eager = live.activations() - result.untyped_storage().nbytes()
        aot_function(
            of_tensors,
            fw_compiler=note,
            bw_compiler=lambda gm, example_inputs: gm,
            partition_fn=min_cut_rematerialization_partition,
            decompositions=select_decomp_table(),
        )(*tensors)
    return Saved(eager, compiled[0])


def _bytes_saved(graph: Any, num_results: int) -> float:
    """Bytes of the storages that a forward graph returns for the backward graph, without those of its inputs."""
    nodes = list(graph.graph.nodes)
    inputs = {_key(node) for node in nodes if node.op == "placeholder" and _is_tensor(node)}
    saved = [node for node in nodes[-1].args[0][num_results:] if _is_tensor(node)]
    found = {_key(node): node.meta["val"].untyped_storage().nbytes() for node in saved}
    return sum(size for key, size in found.items() if key not in inputs)


def _key(node: Any) -> int:
    return node.meta["val"].untyped_storage()._cdata


def _is_tensor(node: Any) -> bool:
    return isinstance(getattr(node, "meta", {}).get("val"), Tensor)
