"""Scopes: matching and precedence of bindings."""

import itertools
import random

import pytest
from small_model import values

from ml.config.scopes import PathIndex, compress, match, matches, parse_range

BLOCKS = range(5)
LINEARS = [
    *("mixer/query", "mixer/key", "mixer/value", "mixer/output"),
    *("mlp/gate", "mlp/up", "mlp/down"),
]


def biased(config) -> set[str]:
    return {path for path, value in values(config, "Linear", "bias").items() if value == "True"}


def all_linears(blocks=BLOCKS, names=LINEARS) -> set[str]:
    return {f"decoder/block_{block}/{name}" for block in blocks for name in names}


REACH = {
    "every linear": ("Linear.bias = True", all_linears()),
    "a sub-layer of every attention": ("query/Linear.bias = True", all_linears(names=["mixer/query"])),
    "one block": ("block_3/Linear.bias = True", all_linears([3])),
    "a sub-layer of one block": ("block_3/query/Linear.bias = True", all_linears([3], ["mixer/query"])),
    "a range of blocks": ("block_0_to_3/Linear.bias = True", all_linears(range(4))),
    "a sub-layer in a range": ("block_1_to_2/down/Linear.bias = True", all_linears([1, 2], ["mlp/down"])),
    "scopes need not be neighbours": ("decoder/mixer/Linear.bias = True", all_linears(names=LINEARS[:4])),
    "gin's own prefix rule": ("decoder/block_1/mlp/Linear.bias = True", all_linears([1], LINEARS[4:])),
}


@pytest.mark.parametrize(("binding", "reached"), REACH.values(), ids=REACH)
def test_a_binding_applies_wherever_its_scopes_occur_in_order(load_model, binding, reached):
    default = "" if binding.startswith("Linear") else "Linear.bias = False"
    assert biased(load_model(default, binding)) == reached


def test_scopes_out_of_order_do_not_match(problems):
    (problem,) = problems("mixer/decoder/Linear.bias = False")
    assert "no Linear is built in the scope 'mixer/decoder'" in problem


QUERY_3 = "decoder/block_3/mixer/query"
STRONGER = {
    "more components over fewer": ("block_3/query/Linear.bias", "Linear.bias"),
    "more components over deeper": ("decoder/block_3/Linear.bias", "query/Linear.bias"),
    "deeper over shallower": ("query/Linear.bias", "block_3/Linear.bias"),
    "deeper by its last component": ("decoder/query/Linear.bias", "block_3/mixer/Linear.bias"),
    "deeper by the one before the last": ("mixer/query/Linear.bias", "block_3/query/Linear.bias"),
    "deeper range over a shallower name": ("block_0_to_4/Linear.bias", "decoder/Linear.bias"),
    "exact over a range": ("block_3/Linear.bias", "block_0_to_4/Linear.bias"),
    "exact over a range above an equal component": ("block_3/query/Linear.bias", "block_0_to_4/query/Linear.bias"),
}


@pytest.mark.parametrize("strong_first", [True, False])
@pytest.mark.parametrize(("stronger", "weaker"), STRONGER.values(), ids=STRONGER)
def test_the_more_specific_binding_wins_in_either_order(load_model, stronger, weaker, strong_first):
    pair = [f"{stronger} = True", f"{weaker} = False"]
    config = load_model(*(pair if strong_first else pair[::-1]), allow_unused_bindings=True)
    assert values(config, "Linear", "bias")[QUERY_3] == "True"


@pytest.mark.parametrize("value", ["True", "False"])
def test_of_equally_specific_bindings_the_later_wins(load_model, value):
    other = str(value != "True")
    config = load_model(f"block_0_to_4/Linear.bias = {other}", f"block_2_to_3/Linear.bias = {value}")
    found = values(config, "Linear", "bias")
    assert found[QUERY_3] == value
    assert found["decoder/block_0/mixer/query"] == other


def test_a_flag_does_not_override_a_more_specific_binding_of_a_file(load_model, tmp_path):
    file = tmp_path / "specific.gin"
    file.write_text("query/Linear.bias = True\n")
    found = values(load_model("Linear.bias = False", files=[file]), "Linear", "bias")
    assert found["decoder/block_0/mixer/query"] == "True"
    assert found["decoder/block_0/mixer/key"] == "False"


def subsequences(scope, path):
    """Returns every way to place `scope` on `path`, by brute force."""
    for positions in itertools.combinations(range(len(path)), len(scope)):
        if all(matches(pattern, path[i]) for pattern, i in zip(scope, positions, strict=True)):
            yield positions


def test_matching_finds_the_deepest_placement_that_brute_force_finds():
    generator = random.Random(0)
    components = ["a", "b", "block_0", "block_1", "block_2", "mixer"]
    patterns = [*components, "block_0_to_1", "block_1_to_2", "block_7_to_9"]
    found = 0
    for _ in range(3000):
        path = tuple(generator.choices(components, k=generator.randint(0, 5)))
        scope = tuple(generator.choices(patterns, k=generator.randint(0, 3)))
        index = PathIndex({scope, ("a",), ("block_2",)})
        reduced = index.reduce(path)
        ways = [tuple(reversed(p)) for p in subsequences(scope, path)]
        result = match(scope, reduced)
        assert (result is not None) == bool(ways)
        if ways:
            found += 1
            kept = [i for i, component in enumerate(path) if index.reduce((component,))]
            assert tuple(kept[p] for p in result.positions) == max(ways)
            assert result.exact == tuple(parse_range(pattern) is None for pattern in reversed(scope))
    assert found > 300


def test_the_reduced_path_below_another_is_the_reduced_path():
    index = PathIndex({("block_0_to_1", "query"), ("mixer",)})
    path = ("decoder", "block_1", "mixer", "query")
    assert index.below(index.reduce(path[:-1]), path[-1]) == index.reduce(path)
    assert index.below(index.reduce(path), "other") == index.reduce(path)


def test_paths_are_compressed_into_ranges():
    paths = [("decoder", f"block_{i}", "mixer") for i in (0, 1, 2, 5)]
    assert compress([*paths, ("head",)]) == ["decoder/block_0_to_2/mixer", "decoder/block_5/mixer", "head"]


@pytest.mark.parametrize(
    ("pattern", "component", "expected"),
    [
        ("block_0_to_3", "block_0", True),
        ("block_0_to_3", "block_3", True),
        ("block_0_to_3", "block_4", False),
        ("block_0_to_3", "blocks_2", False),
        ("block_9_to_11", "block_10", True),
        ("block_1", "block_10", False),
        ("block_0_to_3", "block_0_to_3", True),
    ],
)
def test_ranges_include_both_ends(pattern, component, expected):
    assert matches(pattern, component) is expected
