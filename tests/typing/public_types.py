"""Types that editors and type checkers see. `mypy` checks this file and nothing runs it.

An `ignore` that hides no error is an error (`warn_unused_ignores`), so each one asserts that mypy refuses the line.
"""

import enum
from collections.abc import Callable
from functools import partial
from typing import Any, assert_type

import torch
from torch import Tensor, nn

import ml
from ml.config import child, configurable, register_enum
from ml.layers import Linear
from ml.layers.children import optional_child
from ml.models import LanguageModel, materialize
from ml.training import Trainer


@configurable
class Scaled(nn.Module):
    """A decorated class."""

    def __init__(self, size: int, *, scale: float = 1.0):
        super().__init__()
        self.size = size
        self.scale = scale


@configurable("Renamed", module="somewhere", denylist=["size"])
class Derived(Scaled):
    """A decorated class that derives from a decorated class."""


@configurable
def halved(x: float, *, times: int = 1) -> float:
    """A decorated function."""
    return x / 2**times


@configurable(module="somewhere")
def doubled(x: float) -> float:
    """A function decorated with options."""
    return 2 * x


@register_enum
class Color(enum.Enum):
    """A registered enum."""

    RED = 1


def a_decorated_class_is_that_class(module: nn.Module) -> None:
    """Its name is a type, its constructor and its attributes are known."""
    assert_type(configurable(Scaled), type[Scaled])  # mypy asks only calls, pyright decorators of classes too
    assert_type(configurable("Renamed", module="somewhere")(Scaled), type[Scaled])
    assert_type(Scaled(3, scale=2.0).scale, float)
    assert_type(Derived(3), Derived)
    assert_type(Derived(3).size, int)
    assert_type(Linear(3, 4).in_features, int)
    if isinstance(module, Scaled):
        assert_type(module, Scaled)
    Scaled("3")  # type: ignore[arg-type]
    Scaled(3, scales=2.0)  # type: ignore[call-arg]
    Derived()  # type: ignore[call-arg]
    Linear(3, 4, biased=False)  # type: ignore[call-arg]


def a_decorated_function_keeps_its_signature() -> None:
    """Its parameters and its result are known."""
    assert_type(halved(3.0, times=2), float)
    assert_type(doubled(3.0), float)
    halved(3.0, 2)  # type: ignore[call-arg]
    halved("3")  # type: ignore[arg-type]
    doubled(3.0, times=2)  # type: ignore[call-arg]


def options_of_the_decorator_are_checked() -> None:
    """They are those of gin."""
    configurable(modules="somewhere")  # type: ignore[call-overload]


def a_registered_enum_is_that_enum() -> None:
    """Its members are known."""
    assert_type([color.value for color in Color], list[int])
    Color.GREEN  # type: ignore[attr-defined]  # noqa: B018


def a_child_has_the_type_of_the_product(layer: Callable[..., nn.Module], maybe: Callable[..., Scaled] | None) -> None:
    """A class, a function, a partial function or whatever a parameter takes."""
    assert_type(child("scaled", Scaled, 3), Scaled)
    assert_type(child("scaled", partial(Scaled, 3)), Scaled)
    assert_type(child("half", halved, 3.0, defaults={"times": 2}), float)
    assert_type(child("layer", layer, 3), nn.Module)
    assert_type(None if maybe is None else child("maybe", maybe), Scaled | None)
    assert_type(optional_child("maybe", maybe), Scaled | None)
    child("maybe", maybe)  # type: ignore[arg-type]


def the_calls_of_the_package(stream_of_a_notebook: None) -> None:
    """`load`, `build`, `train`, `open_run`."""
    config = ml.load("base.gin", bindings=["Linear.bias = False", {"Linear.bias": False}], search_path=["configs"])
    assert_type(config, ml.Config)
    assert_type(config.fingerprint, str)
    assert_type(ml.build(config), LanguageModel)
    assert_type(ml.build(config, device=torch.device("cpu")).tied_weight, Tensor | None)
    run = ml.train(config, "runs/first", stream=stream_of_a_notebook)
    assert_type(run, ml.Run)
    assert_type(ml.open_run("runs/first"), ml.Run)
    assert_type(run.config, ml.Config)
    assert_type(run.build(step=100), LanguageModel)
    assert_type(run.metrics(), list[dict[str, Any]])
    ml.load("base.gin", binding="Linear.bias = False")  # type: ignore[call-arg]
    ml.train("base.gin")  # type: ignore[arg-type]


def what_a_trainer_holds(trainer: Trainer) -> None:
    """The model, before it leaves the meta device and after."""
    assert_type(trainer.model, LanguageModel)
    assert_type(trainer.start(torch.device("cpu")).model, LanguageModel)
    assert_type(materialize(trainer.model), LanguageModel)
    assert_type(materialize(nn.Linear(3, 4)), nn.Linear)


def generation_returns_a_text_for_one_prompt_and_a_list_for_several(run: ml.Run) -> None:
    """Prompts and conversations have the same results."""
    hi = [{"role": "user", "content": "Hi"}]
    assert_type(run.generate("Hi"), str)
    assert_type(run.generate(["Hi", "Ho"]), list[str])
    assert_type(run.generate(messages=hi), str)
    assert_type(run.generate(messages=[hi, hi], temperature=0.0), list[str])
    assert_type(run.generate(messages=hi, num_samples=2), list[str])
    run.generate("Hi", messages=hi)  # type: ignore[call-overload]
