"""Incomplete annotations: names that exist for a type checker only, factories, singletons, `**kwargs`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import gin
import pytest

from ml.config import child, configurable, load
from ml.config.annotations import annotations_of

if TYPE_CHECKING:
    from nowhere import Ghost

gin.external_configurable(dict, "new_dict", module="test_annotations")


class Tool:
    pass


@configurable
class Hammer(Tool):
    def __init__(self, *, weight: float = 1.0):
        self.weight = weight


@configurable
class Callback:
    def __call__(self) -> Tool:
        return Hammer()


@configurable
def unannotated():
    return Hammer(weight=2.0)


@configurable
def wrong_product():
    return 3


@configurable
def tool_factory() -> Callable[..., Tool]:
    return Hammer


@configurable
class Bench:
    def __init__(
        self,
        *,
        size: int = 1,
        ghost: Ghost | None = None,
        ghosts: list[Ghost] | None = None,
        tool: Tool | None = None,
        make: Callable[..., Tool] = Hammer,
        kinds: dict[str, Callable[..., Tool]] | None = None,
        tools: Sequence[Tool] = (),
    ):
        self.size, self.ghost, self.tool, self.tools = size, ghost, tool, tools
        self.made = child("made", make)
        self.kinds = {name: child(name, kind) for name, kind in (kinds or {}).items()}


@configurable
class Open:
    def __init__(self, first: int = 0, **options: float):
        self.first, self.options = first, options


@configurable
class Opener:
    def __init__(self, *, opened: Callable[..., Open] = Open):
        self.opened = child("opened", opened, second=2.0, defaults={"third": 3.0})


@configurable(denylist=["secret"])
class Closed:
    def __init__(self, secret: int = 0, **options: Any):
        self.options = options


TOOL = "a reference (@Name) to a constructor of Tool"


def load_bench(*bindings: str, **options):
    return load((), bindings, root=Bench, **options)


def problem_of(*bindings: str) -> str:
    with pytest.raises(ValueError) as caught:
        load_bench(*bindings)
    (problem,) = caught.value.problems
    return str(problem)


def function_with(annotation: str) -> Callable[..., None]:
    def function(x):
        pass

    function.__annotations__ = {"x": annotation, "y": "int"}
    return function


@pytest.mark.parametrize(
    ("annotation", "unknown"),
    [
        ("Ghost", ("Ghost",)),
        ("Ghost | None", ("Ghost",)),
        ("dict[Ghost, list[Phantom]]", ("Ghost", "Phantom")),
        ("gin.Ghost", ("gin.Ghost",)),
        ("Ghost.of[int]", ("Ghost",)),
        ("1 +", ("1 +",)),
        ("float", ()),
    ],
)
def test_an_unresolvable_name_is_reported_and_hides_nothing_else(annotation, unknown):
    found = annotations_of(function_with(annotation))
    assert (found["x"].unknown, found["x"].text) == (unknown, annotation if unknown else "")
    assert found["y"].type is int


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("Bench.size = '1'", "Bench.size must be int, not '1' (str)"),
        ("Bench.ghosts = 3", "Bench.ghosts must be list[Ghost] | None, not 3 (int)"),
        ("Bench.make = 3", f"Bench.make must be {TOOL}, not 3 (int)"),
    ],
)
def test_one_unknown_name_leaves_the_other_checks_on(binding, message):
    assert f"--gin_bindings[0]: {message}" in problem_of(binding)


def test_a_value_that_cannot_be_fully_checked_is_a_warning_with_its_place():
    config = load_bench("Bench.size = 2", "Bench.ghost = 5")
    (warning,) = config.warnings
    assert str(warning.location) == "--gin_bindings[1]"
    assert "Bench.ghost cannot be fully checked: its annotation 'Ghost | None'" in warning.message
    assert load((), config.operative, root=Bench).operative == config.operative
    assert load_bench("Bench.size = 2").warnings == ()


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        (
            "Bench.make = @Hammer()",
            f"Bench.make must be {TOOL}, not the result of",
        ),
        ("Bench.make = @far/Hammer()", "(without parentheses, @far/Hammer is the constructor)"),
        ("Bench.kinds = {'a': @Hammer, 'b': @Hammer()}", "(without parentheses, @Hammer is the constructor)"),
        (
            "Bench.make = @unannotated()",
            f"Bench.make must be {TOOL}, not a test_annotations.Hammer",
        ),
        (
            "Bench.kinds = {'a': @unannotated()}",
            f"Bench.kinds ['a'] must be {TOOL}, not a test_annotations.H",
        ),
        ("Bench.tool = @wrong_product()", "Bench.tool must be Tool | None, not 3 (int)"),
        ("Bench.tools = [@unannotated(), @wrong_product()]", "Bench.tools [1] must be Tool, not 3 (int)"),
        ("Bench.tool = @Callback()", "Bench.tool must be Tool | None, not the result of @Callback()"),
        ("Bench.tool = @Hammer", "(with parentheses, @Hammer() is the constructor's result)"),
    ],
)
def test_the_result_of_a_reference_is_checked_at_its_binding(binding, message):
    problem = problem_of(binding)
    assert problem.startswith("--gin_bindings[0]: ")
    assert message in problem
    assert f"\n      {binding}" in problem


def test_results_of_factories_and_singletons_match_typed_parameters():
    bench = load_bench(
        "Bench.tool = @unannotated()",
        "Bench.make = @tool_factory()",
        "Bench.tools = [@one/gin.singleton(), @one/gin.singleton(), @Hammer()]",
        "one/gin.singleton.constructor = @unannotated",
        "Bench.kinds = {'called': @Callback()}",
    ).build(Bench)
    assert bench.tool.weight == 2.0
    assert isinstance(bench.made, Hammer)
    assert bench.tools[0] is bench.tools[1] is not bench.tools[2]
    assert isinstance(bench.kinds["called"], Hammer)


def load_holder(*bindings: str):
    return load((), bindings, root=Opener)


def test_values_of_open_parameters_are_built_recorded_and_saved():
    config = load_holder("Open.fourth = 4.0", "elsewhere/Open.fourth = 5.0", "Opener.opened = @elsewhere/Open")
    built = config.build(Opener).opened
    assert (built.first, built.options) == (0, {"second": 2.0, "third": 3.0, "fourth": 5.0})
    found = {r.parameter: (r.path, r.value, r.source, r.explicit, len(r.overrode)) for r in config.records()}
    assert found["second"] == ("opened/elsewhere", "2.0", "parent", False, 0)
    assert found["third"] == ("opened/elsewhere", "3.0", "parent", False, 0)
    assert found["fourth"] == ("opened/elsewhere", "5.0", "flag", True, 1)
    again = load((), config.operative, root=Opener)
    assert again.operative == config.operative
    assert "elsewhere/Open.fourth = 5.0" in config.operative
    assert again.build(Opener).opened.options == built.options


def test_open_parameters_are_checked_by_their_annotation():
    with pytest.raises(ValueError, match=r"--gin_bindings\[0\]: Open.fourth must be float, not 'x' \(str\)"):
        load_holder("Open.fourth = 'x'")


def test_a_required_open_parameter_is_a_problem_with_its_place():
    with pytest.raises(ValueError, match=r"--gin_bindings\[0\]: Open.fourth must be set, and nothing sets it"):
        load_holder("Open.fourth = %gin.REQUIRED")


def test_a_denied_parameter_cannot_be_bound_as_an_open_one():
    with pytest.raises(ValueError, match="Closed has no parameter 'secret'"):
        load((), "Closed.secret = 3", root=Closed)
    assert load((), "Closed.other = 3", root=Closed).build(Closed).options == {"other": 3}
