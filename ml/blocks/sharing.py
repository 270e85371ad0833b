"""Blocks that share their weights."""

from torch import nn

from ml.layers.parameter import SETTINGS


def share_weights(blocks: list[nn.Module], name: str) -> None:
    """Gives every block the parameters of the first; the blocks stay apart, each with its own place and state.

    Raises ValueError where they are not alike: a shared weight has one shape, one initialization and one scale.
    """
    first = dict(blocks[0].named_modules())
    for block in blocks[1:]:
        others = dict(block.named_modules())
        if others.keys() != first.keys():
            different = sorted(others.keys() ^ first.keys())[0]
            raise ValueError(f"the blocks {name} share their weights, and {different} is not in all of them")
        for path, module in others.items():
            _share(first[path], module, f"{name}: {path}")


def _share(source: nn.Module, target: nn.Module, place: str) -> None:
    same_scale = getattr(source, "lr_scale", 1.0) == getattr(target, "lr_scale", 1.0)
    if not same_scale or _described(source) != _described(target):
        raise ValueError(
            f"shared weights have one shape, one initialization, one lr_scale and one weight_decay; not so in {place}"
        )
    for name, parameter in source._parameters.items():
        target._parameters[name] = parameter


def _described(module: nn.Module) -> dict[str, object]:
    """What must be the same of two modules that share parameters."""
    return {
        name: None if parameter is None else (parameter.shape, *(_comparable(parameter, key) for key in SETTINGS))
        for name, parameter in module._parameters.items()
    }


def _comparable(parameter: nn.Parameter, setting: str) -> object:
    """A setting; of an initialization, which is a partial function, the function and its arguments."""
    value = getattr(parameter, setting)
    return (value.func, value.args, value.keywords) if hasattr(value, "keywords") else value
