"""Declarations of the layers of a model, and the layer that lacks one."""

from collections.abc import Iterator, Mapping

from torch import nn

from ml.layers.protocol import Buffered, Layer, Mixer, Stack
from ml.layers.walk import all_modules, named_modules

_NOISY = (nn.modules.dropout._DropoutNd, nn.RReLU)


def obstacle_to_decoding(mixing: Mapping[str, nn.Module]) -> str | None:
    """The layer that does not decode from a cache, and what to declare; None where all do.

    Args:
        mixing: Modules by their paths in the model.
    """
    for path, module in mixers_of(mixing):
        if not isinstance(module, Mixer):
            return f"{_named(path, module)} does not declare that it decodes from a cache: {_advice('decodes')}"
        if not module.decodes:
            return f"{_named(path, module)} does not decode from a cache (Mixer.decodes is False)"
    return None


def obstacle_to_documents(mixing: Mapping[str, nn.Module]) -> str | None:
    """The layer that does not separate documents, and what to declare; None where all do.

    Args:
        mixing: Modules by their paths in the model.
    """
    for path, module in mixers_of(mixing):
        if not isinstance(module, Mixer):
            advice = _advice("separates_documents")
            return f"{_named(path, module)} does not declare that it separates documents: {advice}"
        if not module.separates_documents:
            return f"{_named(path, module)} does not separate documents (Mixer.separates_documents is False)"
    return None


def obstacle_to_seeing_all(mixing: Mapping[str, nn.Module]) -> str | None:
    """The layer that does not declare that a position sees those after it too; None where all do.

    Args:
        mixing: Modules by their paths in the model.
    """
    for path, module in mixers_of(mixing):
        if not isinstance(module, Mixer) or module.causal is None:
            advice = "derive it from ml.layers.Mixer and set `causal = False`"
            return f"{_named(path, module)} does not declare that a position sees those after it: {advice}"
    return None


def obstacle_to_flops(model: nn.Module) -> str | None:
    """The layer that does not declare its FLOPs, and what to declare; None where all do.

    Layers of torch that hold no parameter, such as containers and dropout, have no own matrix products.
    """
    for path, module in named_modules(model):
        is_declared = isinstance(module, Layer) and module.training_flops_per_token(1) is not None
        if not is_declared and (not _is_of_torch(module) or module._parameters):
            advice = "derive it from ml.layers.Layer and define `training_flops_per_token`"
            return f"{_named(path, module)} does not declare its FLOPs: {advice}"
    return None


def obstacle_to_allocation(model: nn.Module) -> str | None:
    """The layer whose buffers cannot be computed after the meta device, and what to declare; None where all can."""
    for path, module in named_modules(model):
        names = [name for name, buffer in module._buffers.items() if buffer is not None]
        if names and not isinstance(module, Buffered):
            advice = "derive it from ml.layers.Buffered and define `reset_buffers`"
            return (
                f"{_named(path, module)} has the buffer {names[0]} and does not declare how it is computed after the "
                f"meta device: {advice}"
            )
    return None


def draws_noise(model: nn.Module) -> bool:
    """Returns whether a layer draws random numbers in training, or does not declare that it draws none."""
    return any(_may(module, "draws_noise") for module in all_modules(model))


def couples_sequences(model: nn.Module) -> bool:
    """Returns whether the loss depends on which sequences share a micro-batch, or a layer does not declare it."""
    return any(_may(module, "couples_sequences") for module in all_modules(model))


def _may(module: nn.Module, declared: str) -> bool:
    if isinstance(module, Layer):
        return getattr(module, declared)
    return not _is_of_torch(module) or bool(module._parameters) or isinstance(module, _NOISY)


def obstacle_to_depth(path: str, module: nn.Module) -> str | None:
    """Reason that the depth of a module is unknown, and what to declare; None where it is known.

    Args:
        path: The module's path in the model.
        module: A layer, or a module that declares nothing.
    """
    if isinstance(module, Layer):
        return None
    advice = "derive it from ml.blocks.BlockSequence"
    return f"{_named(path, module)} does not declare how many layers it has: {advice}"


def depth_of(module: nn.Module) -> int:
    """The number of blocks that a token passes in a module: 1 for one that is no `Stack`."""
    return module.num_layers if isinstance(module, Stack) else 1


def branches_of(module: nn.Module) -> int:
    """The number of branches of a module that add to the residual stream: two for one that declares none."""
    return module.num_branches if isinstance(module, Layer) else 2


def max_sequence_length(*modules: nn.Module) -> int | None:
    """The longest sequence that all layers of some modules take; None for any."""
    layers = [layer for module in modules for layer in all_modules(module) if isinstance(layer, Layer)]
    lengths = [layer.max_sequence_length for layer in layers]
    return min((length for length in lengths if length is not None), default=None)


def mixers_of(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """Yields the modules that mix positions: mixers, and modules that do not declare what they are.

    Args:
        modules: Modules by their paths in the model.

    Yields:
        The path and the module.
    """
    for path, module in modules.items():
        if isinstance(module, Mixer) or not isinstance(module, Layer):
            yield path, module
        if isinstance(module, Layer):
            yield from mixers_of({f"{path}.{name}": child for name, child in module.mixing_children().items()})


def _named(path: str, module: nn.Module) -> str:
    return f"{path} ({type(module).__name__})" if path else type(module).__name__


def _advice(attribute: str) -> str:
    return f"derive it from ml.layers.Mixer and set `{attribute} = True`"


def _is_of_torch(module: nn.Module) -> bool:
    return type(module).__module__.partition(".")[0] == "torch"
