"""Computation of an update in float32 over weights and state that are stored with fewer bits."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from ml.training.optimizers.dynamic_map import DynamicMap
from ml.training.optimizers.portion import Portion
from ml.training.optimizers.rounding import round_into
from ml.training.optimizers.state_formats import SCALE

_CODES = (torch.int8, torch.uint8)


class Widening:
    """Widens portions to float32 and stores them in their own formats; keeps the maps of quantized state."""

    def __init__(self) -> None:
        self._maps: dict[tuple[torch.dtype, torch.device], DynamicMap] = {}

    @contextlib.contextmanager
    def of(self, portion: Portion, generator: torch.Generator | None) -> Iterator[Portion]:
        """Yields the portion in float32, or as it is if all of it has one dtype; stores the changes after the body.

        Args:
            portion: Weights, gradients and state as they are stored.
            generator: Rounds the weights stochastically; None rounds them to nearest.
        """
        if generator is None and _has_one_dtype(portion):
            yield portion
            return
        stored = portion.state
        state = {key: self._widened(key, stored) for key in stored if not _is_scale(key, stored)}
        weights = _in_float32(portion.weights)
        yield portion._replace(weights=weights, gradients=_in_float32(portion.gradients), state=state)
        if generator is not None:
            round_into(portion.weights, weights, generator)
        else:
            _store(portion.weights, weights)
        for key, values in state.items():
            if _is_quantized(key, stored):
                for codes, scales, value in zip(stored[key], stored[key + SCALE], values, strict=True):
                    self._map(codes).quantize(value, codes, scales)
            else:
                _store(stored[key], values)

    def _widened(self, key: str, stored: dict[str, list[Tensor]]) -> list[Tensor]:
        if not _is_quantized(key, stored):
            return _in_float32(stored[key])
        pairs = zip(stored[key], stored[key + SCALE], strict=True)
        return [self._map(codes).dequantize(codes, scales) for codes, scales in pairs]

    def _map(self, codes: Tensor) -> DynamicMap:
        key = (codes.dtype, codes.device)
        if key not in self._maps:
            self._maps[key] = DynamicMap.of(*key)
        return self._maps[key]


def _is_quantized(key: str, stored: dict[str, list[Tensor]]) -> bool:
    return key + SCALE in stored and stored[key][0].dtype in _CODES


def _is_scale(key: str, stored: dict[str, list[Tensor]]) -> bool:
    return key.endswith(SCALE) and _is_quantized(key.removesuffix(SCALE), stored)


def _has_one_dtype(portion: Portion) -> bool:
    """Returns True if the state, except for counters, has the dtype of the weights."""
    dtype = portion.weights[0].dtype
    return all(tensors[0].ndim == 0 or tensors[0].dtype == dtype for tensors in portion.state.values())


def _in_float32(tensors: list[Tensor]) -> list[Tensor]:
    """Converts to at least float32; tensors that have it, or are no floating point, are the same objects."""
    is_narrow = tensors[0].is_floating_point() and tensors[0].dtype.itemsize < torch.float32.itemsize
    return [tensor.float() for tensor in tensors] if is_narrow else tensors


def _store(stored: list[Tensor], values: list[Tensor]) -> None:
    if stored is not values:
        torch._foreach_copy_(stored, values)
