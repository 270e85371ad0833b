"""Strict type checks against annotations, before anything is built."""

import enum
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

from ml.config import ImportedValue
from ml.config.configurable import reference_to
from ml.config.types import mismatch
from ml.config.values import Reference
from ml.layers import Linear, RMSNorm, silu


class Color(enum.StrEnum):
    RED = "red"


LINEAR, SILU = reference_to(Linear), reference_to(silu)
NORM_MADE = Reference((), reference_to(RMSNorm).configurable, evaluate=True)

FITS = [
    (True, bool),
    (1, int),
    (1, float),
    (0.1, float),
    ("x", str),
    (None, int | None),
    (3, int | None),
    ("pre", Literal["pre", "post"]),
    (2, Literal[1, 2]),
    ([1, 2], list[int]),
    ([], list[int]),
    ([1, 0.5], list[float]),
    ((1, "a"), tuple[int, str]),
    ((1, 2, 3), tuple[int, ...]),
    ((), tuple[int, ...]),
    ({"a": 1}, dict[str, int]),
    ([{"a": (1, 2)}], list[dict[str, tuple[int, int]]]),
    ((1, 2), Sequence[int]),
    (torch.bfloat16, torch.dtype),
    (Color.RED, Color),
    (LINEAR, Callable[..., nn.Module]),
    (LINEAR, Callable),
    (LINEAR, type[nn.Module]),
    (LINEAR, Callable[..., nn.Module] | None),
    (SILU, Callable[..., Any]),
    (NORM_MADE, nn.Module),
    ([LINEAR, SILU], list[Callable[..., Any]]),
    (print, Any),
]
MISFITS = [
    ("0.1", float, "must be float, not '0.1' (str)"),
    (1, bool, "must be bool, not 1 (int)"),
    (True, int, "must be int, not True (bool)"),
    (True, float, "must be float, not True (bool)"),
    (1.0, int, "must be int, not 1.0 (float)"),
    (None, int, "must be int, not None"),
    ("1", int | None, "must be int | None, not '1' (str)"),
    (np.float32(1), float, "must be float, not np.float32(1.0) (numpy.float32)"),
    (np.float64(1), float, "must be float, not np.float64(1.0) (numpy.float64)"),
    (np.int64(1), int, "must be int, not np.int64(1) (numpy.int64)"),
    (np.bool_(True), bool, "must be bool, not np.True_ (numpy.bool)"),
    (np.str_("x"), str, "must be str, not np.str_('x') (numpy.str_)"),
    ("prae", Literal["pre", "post"], "must be one of 'pre', 'post', not 'prae' (str)"),
    (True, Literal[1, 2], "must be one of 1, 2, not True (bool)"),
    ([1, "x"], list[int], "[1] must be int, not 'x' (str)"),
    ((1, 2), list[int], "must be list[int], not (1, 2) (tuple)"),
    ([1, 2], tuple[int, int], "must be tuple[int, int], not [1, 2] (list)"),
    ((1, 2, 3), tuple[int, int], "must be tuple[int, int] of length 2, not of length 3"),
    ((1, True), tuple[int, ...], "[1] must be int, not True (bool)"),
    ({"a": "x"}, dict[str, int], "['a'] must be int, not 'x' (str)"),
    ({1: 1}, dict[str, int], "has the key 1, which must be str, not 1 (int)"),
    ([[1, "x"]], list[list[int]], "[0] [1] must be int, not 'x' (str)"),
    ("red", Color, "must be Color, not 'red' (str)"),
    ("bfloat16", torch.dtype, "must be dtype, not 'bfloat16' (str)"),
    (3, Callable[..., nn.Module], "must be a reference (@Name) to a constructor of Module, not 3 (int)"),
    (LINEAR, int, "must be int, not the reference @Linear"),
    (NORM_MADE, int, "must be int, not the result of @RMSNorm()"),
    (LINEAR, nn.Module, "with parentheses, @Linear()"),
]


@pytest.mark.parametrize(("value", "annotation"), FITS, ids=str)
def test_a_value_of_the_right_type_is_accepted(value, annotation):
    assert mismatch(value, annotation) is None


@pytest.mark.parametrize(("value", "annotation", "message"), MISFITS, ids=str)
def test_a_value_of_another_type_is_refused_with_both_types(value, annotation, message):
    assert message in mismatch(value, annotation)


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("RMSNorm.epsilon = '0.1'", "RMSNorm.epsilon must be float, not '0.1' (str)"),
        ("Linear.bias = 1", "Linear.bias must be bool, not 1 (int)"),
        ("GatedMLP.intermediate_size = True", "GatedMLP.intermediate_size must be int | None, not True (bool)"),
        (
            "DecoderBlock.mixer = None",
            "DecoderBlock.mixer must be a reference (@Name) to a constructor of Module, not None",
        ),
        (
            "DecoderBlock.mixer = 'Attention'",
            "DecoderBlock.mixer must be a reference (@Name) to a constructor of Module",
        ),
        ("X = 1\nLinear.bias = %X", "Linear.bias must be bool, not 1 (int)"),
    ],
)
def test_type_errors_have_the_place_of_the_binding(problems, binding, message):
    assert any(problem.startswith("--gin_bindings[1]") and message in problem for problem in problems(binding))


def test_an_int_for_a_float_is_saved_as_a_float(load_model):
    assert "RMSNorm.epsilon = 1.0\n" in load_model("RMSNorm.epsilon = 1").operative


def test_numpy_scalars_are_not_accepted_as_python_numbers(problems):
    (found,) = problems(imported=[ImportedValue("RMSNorm.epsilon", np.float32(0.5), "config.json#rms_norm_eps")])
    assert "config.json#rms_norm_eps: RMSNorm.epsilon must be float, not np.float32(0.5) (numpy.float32)" in found


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("Attention.num_heads = 0", "Attention.num_heads must be positive, not 0"),
        ("Attention.num_heads = 5", "Attention.num_heads must divide hidden_size (32)"),
        ("DecoderBlock.dropout = 1.5", "DecoderBlock.dropout must be at least 0 and below 1, not 1.5"),
        ("block_3/Linear.lr_scale = -1.0", "Linear.lr_scale must be at least 0"),
        ("GatedMLP.intermediate_size = 0", "GatedMLP.intermediate_size must be positive, not 0"),
    ],
)
def test_ranges_are_checked_at_use_and_name_the_binding(problems, binding, message):
    found = problems(binding)
    assert all(problem.startswith("--gin_bindings[1]: ") for problem in found), found
    assert any(message in problem and f"\n      {binding}" in problem for problem in found), found


def test_an_incompatible_part_is_named(problems):
    (found,) = problems("DecoderBlock.mixer = @Linear")
    assert "--gin_bindings[1]: Linear cannot be built (at decoder/block_0/mixer)" in found
