"""The layer contract: what a layer declares to the model and the trainer.

Any `nn.Module` with the right `forward` can stand in a model and train. What the rest of the program needs to know
beyond that is declared by deriving from the classes below, and asked there and nowhere else. A layer that does not
declare something is refused where it is needed, with its place and the declaration to add:

| needed for | declared by | without it |
|---|---|---|
| the utilization (mfu) | `Layer.training_flops_per_token` | mfu is not reported, and the reason is |
| decoding from a cache | `Mixer.decodes` | generation takes the full forward pass for every token |
| packed documents | `Mixer.separates_documents` | an error in the dry run |
| a vision encoder | `Mixer.causal` | an error in the dry run |
| buffers after the meta device | `Buffered` | an error in the dry run |
| scaling learning rates, freezing | `Layer.lr_scale` | an attribute of that name is an error in the dry run |
| `scaled_normal`, depths of multi-token prediction | `Stack` | an error in the dry run |
| `scaled_normal` with other than two branches a block | `Layer.num_branches` | two are counted |
| a draw in every step | `Drawn` | the layer is not drawn |
| limits of a device | `Layer.obstacle_on` | an error of torch in the first step |
| load balancing without a loss | `Balanced` | the layer is not balanced |
| another micro-batch size, or compiling, in a resumed run | `Layer` | such a run needs `--extend` |

How a layer is sharded (tensor, context, expert, pipeline) and how its weights map to another format are no part of
this contract. Both are answered outside the layer, in tables keyed by its type, so that a layer stays pure torch and a
new kind of parallelism or a new format changes no layer. A type that such a table does not have is refused by name.
"""

import abc
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ml.layers.checks import checked_lr_scale
from ml.layers.context import Context


class Workload(NamedTuple):
    """The sequence that a layer works on, seen from the sequence of the model.

    Args:
        sequence_length: Its length.
        per_token: How many of its positions there are for each token of the model.
    """

    sequence_length: int
    per_token: float


class Layer(nn.Module):
    """Base class of a layer that declares something.

    A layer treats every position by itself, except for what its `mixing_children` do and unless it is a `Mixer`.

    Attributes:
        lr_scale: Multiplies the learning rate of all parameters in the layer; 0 freezes them.
        draws_noise: Whether the layer draws random numbers in training, as dropout does.
        couples_sequences: Whether the loss depends on which sequences are in one micro-batch.
    """

    lr_scale: float = 1.0
    draws_noise: bool = False
    couples_sequences: bool = False

    @property
    def num_branches(self) -> int:
        """As a block: the number of its branches that add to the residual stream, by default a mixer and an MLP."""
        return 2

    def __init__(self, lr_scale: float = 1.0):
        super().__init__()
        self.lr_scale = checked_lr_scale(lr_scale)

    @property
    def max_sequence_length(self) -> int | None:
        """The longest sequence that the layer takes; None for any."""
        return None

    def mixing_children(self) -> Mapping[str, nn.Module]:
        """The children that move information between positions, by their names in the module."""
        return {}

    def training_flops_per_token(self, sequence_length: int) -> float | None:
        """Floating-point operations of one token in training, forward and backward, without those of the children.

        Args:
            sequence_length: Tokens of the sequence that the layer works on.

        Returns:
            The operations of the layer's own matrix products, 6 for each weight that a token is multiplied with. None,
            the default, where they are not declared.
        """
        return None

    def fraction_of(self, child: str) -> float:
        """The fraction of the tokens of this layer that pass through a child, such as one of several experts.

        Args:
            child: Its name in the module.
        """
        return 1.0

    def workload(self, sequence_length: int) -> Workload:
        """The sequence that this layer and its children work on; an encoder of images declares its patches.

        Args:
            sequence_length: Tokens of the sequence of the model.
        """
        return Workload(sequence_length, 1.0)

    def obstacle_on(self, device_type: str, dtype: torch.dtype) -> str | None:
        """The setting that a device cannot run, and what to set instead; None if it can.

        Args:
            device_type: Type of the device, such as "cuda".
            dtype: The dtype of matrix products.
        """
        return None

    def reason_to_synchronize(self, device_type: str, dtype: torch.dtype) -> str | None:
        """The reason that the forward pass synchronizes with a device, and what to set instead; None if it does not.

        Args:
            device_type: Type of the device, such as "cuda".
            dtype: The dtype of matrix products.
        """
        return None


def lr_scale_of(module: nn.Module) -> float:
    """The learning rate scale of a module, 1 for one that declares none.

    Raises:
        ValueError: The module has an `lr_scale` that it does not declare.
    """
    if isinstance(module, Layer):
        return module.lr_scale
    if "lr_scale" in vars(module):
        raise ValueError(
            f"{type(module).__name__} has an lr_scale and does not declare it: derive it from ml.layers.Layer"
        )
    return 1.0


class NoProducts(Layer):
    """A layer without own matrix products: its FLOPs are those of its children.

    Lookups, norms and other operations on single elements count as none (PaLM, appendix B).
    """

    def training_flops_per_token(self, sequence_length: int) -> float:
        """Zero."""
        return 0.0


class Mixer(Layer):
    """A layer that moves information between the positions of a sequence, called as `mixer(x, context)`.

    Attributes:
        causal: Whether no position sees a later one; None where that is not declared.
        decodes: Whether a pass with a `context.cache` continues the passes before it: the outputs are those of one pass
            over all tokens. See `Context.state` and `Context.keep`.
        separates_documents: Whether positions see only those of the same document, where `context.documents` tells
            them. See `Context.previous_documents` and `Context.document_starts`.
    """

    causal: bool | None = None
    decodes: bool = False
    separates_documents: bool = False

    @property
    def num_branches(self) -> int:
        """The number of projections that write into the residual stream."""
        return 1

    def prepare(self, context: Context, device: torch.device, dtype: torch.dtype) -> None:
        """Computes what the layers of a pass share (`Context.once`), before the first compiled block.

        Args:
            context: Of the pass.
            device: Of the activations.
            dtype: Of the matrix products.
        """


class Stack(Layer, abc.ABC):
    """A layer that is several blocks deep, which initializations that scale with the depth depend on."""

    @property
    @abc.abstractmethod
    def num_layers(self) -> int:
        """The number of blocks that a token passes, those of inner stacks counted one by one."""

    @property
    def num_branches(self) -> int:
        """The number of branches that add to the residual stream; by default two for each block."""
        return 2 * self.num_layers


class Buffered(Layer, abc.ABC):
    """A layer with buffers, whose values are computed after the meta device."""

    @abc.abstractmethod
    def reset_buffers(self, device: torch.device | str) -> None:
        """Allocates and fills the layer's own buffers.

        Args:
            device: Device of the buffers.
        """


class Drawn(Layer, abc.ABC):
    """A layer that is another one in each training step."""

    @abc.abstractmethod
    def draw(self, generator: torch.Generator) -> None:
        """Chooses what the layer is until the next draw.

        Args:
            generator: Of the CPU. Its seed depends on the seed of the run, the layer's place and the step.
        """


class Balanced(Layer, abc.ABC):
    """A router that is changed after each step by the load of its experts."""

    @abc.abstractmethod
    def balance(self, load: Tensor) -> None:
        """Changes buffers of the layer, and nothing else: where a step is skipped they are restored.

        Args:
            load: (E), the number of tokens that each expert got in the step.
        """


class Adapter(Layer, abc.ABC):
    """A trained change of a linear layer, which can be merged into its weight.

    Attributes:
        dropout: The fraction of the input that is dropped in training.
        can_look_up: Whether `lookup` is defined, so that the adapter goes with an embedding.
    """

    dropout: float = 0.0
    can_look_up: bool = False

    @abc.abstractmethod
    def weight(self) -> Tensor:
        """The matrix (out, in) that adds the same as the adapter without dropout."""

    def lookup(self, indices: Tensor) -> Tensor:
        """Addition to the rows of a table: those of `weight` transposed, (..., out)."""
        raise NotImplementedError(f"{type(self).__name__} does not adapt an embedding")

    def looked_up(self, indices: Tensor, rows: Tensor, table: Tensor) -> Tensor:
        """The rows of an adapted table: by default their sum with `lookup`.

        Args:
            indices: Indices of rows, (...).
            rows: Those rows of the table, (..., out).
            table: The table, (in, out).
        """
        return rows + self.lookup(indices)

    def merged(self, weight: Tensor) -> Tensor:
        """The weight (out, in) of the adapted layer, from that of the layer: by default their sum."""
        return weight + self.weight()

    def adapted(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The output of the adapted layer: by default `y` plus the adapter of `x`.

        Args:
            x: Input of the layer, (..., in).
            y: Output of the layer, (..., out).
            weight: Of the layer, (out, in).
            bias: Of the layer, (out), which `y` contains.
        """
        return y + self(x)
