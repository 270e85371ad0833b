"""Parameters declared neutral change no weight of a run: bitwise, or within rounding where they are declared so.

The declarations are found in the registry, other values and the runs by `test_every_parameter`. One run changes all
neutral parameters of a configurable at once.
"""

import functools
import io
import tempfile
from pathlib import Path

import pytest
import torch
from test_every_parameter import (
    BASES,
    CASES,
    CPU,
    EXPERTS,
    HELD,
    MODELS,
    bases_with,
    build_trainer,
    changes_in,
    folder,  # noqa: F401
    loaded,
    open_teacher,
    places,
    refusal,
)

from ml.config.comparison import compare, neutral_changes, statements
from ml.config.configurable import candidates
from ml.config.neutrality import neutrality
from ml.data import DataError
from ml.training import RunError, RunFolder, train
from ml.training.checkpoints.policy import newest_checkpoint
from ml.training.checkpoints.weight_files import read_weights


def declared(name, parameter):
    """Returns the declaration of a parameter as neutral, or that of the parameter that holds its configurable."""
    own = neutrality(candidates(name)[0], parameter)
    return declared(*HELD[name]) if own is None and name in HELD else own


QUIET = "DecoderBlock.dropout = 0.0"
DECLARED = {case: found for case in CASES if (found := declared(*case)) is not None}
BITWISE = [case for case, neutral in DECLARED.items() if not neutral.rounding]
ROUNDED = [case for case, neutral in DECLARED.items() if neutral.rounding]
NAMES = list(dict.fromkeys(name for name, _ in BITWISE))


@functools.cache
def trained(*bindings: str) -> dict[str, torch.Tensor]:
    """Returns the weights at the end of a run."""
    trainer = build_trainer(loaded(*bindings))
    with tempfile.TemporaryDirectory() as name:
        run = RunFolder(Path(name) / "run")
        train(trainer, trainer.open_data(), run, CPU, teacher=open_teacher(trainer, CPU), stream=io.StringIO())
        model = trainer.start(CPU).model
        read_weights(newest_checkpoint(run.checkpoints, print), model)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def opens(*bindings: str) -> bool:
    """Returns whether a run with these bindings can begin on the CPU."""
    if refusal(*bindings) is not None:
        return False
    try:
        trainer = build_trainer(loaded(*bindings))
        trainer.check_device(CPU)
        trainer.open_data()
    except (DataError, RunError):
        return False
    return True


def other_bindings(name: str, parameters: list[str]) -> dict[tuple[str, ...], list[str]]:
    """Returns bindings that change each parameter, by the run that they fit together with."""
    (info,) = candidates(name)
    chosen: dict[tuple[str, ...], list[str]] = {}
    for parameter in parameters:
        spec = info.parameters[parameter]
        found = next(
            (
                (base, binding)
                for base in bases_with(name)
                for _, binding in changes_in(base, name, spec)
                if opens(*base, *chosen.get(base, ()), binding)
            ),
            None,
        )
        assert found is not None, f"no other value of {name}.{parameter} is valid"
        chosen.setdefault(found[0], []).append(found[1])
    return chosen


ON_A_GPU = {("Trainer", "cuda_graphs")}  # tested in tests/training/test_gradient_graphs.py


def bitwise(name: str) -> list[str]:
    """Returns the parameters of a configurable that change no weight of a run on the CPU."""
    return [parameter for of, parameter in BITWISE if of == name and (of, parameter) not in ON_A_GPU]


@pytest.mark.parametrize("name", NAMES)
def test_neutral_parameters_change_no_weight(name):
    for base, bindings in other_bindings(name, bitwise(name)).items():
        ours, theirs = trained(*base), trained(*base, *bindings)
        changed = [weight for weight in ours if not torch.equal(ours[weight], theirs[weight])]
        assert not changed, bindings


@pytest.mark.parametrize("name", NAMES)
def test_neutral_parameters_are_no_part_of_the_fingerprint(name):
    for base, bindings in other_bindings(name, bitwise(name)).items():
        ours, theirs = loaded(*base), loaded(*base, *bindings)
        assert compare(ours.operative, theirs.operative).lines == []
        assert ours.fingerprint == theirs.fingerprint
        assert neutral_changes(ours.operative, theirs.operative)


def is_neutral_in(name: str, parameter: str, *bindings: str) -> bool:
    found = [one for one in statements(loaded(*bindings).operative) if one.name == f"{name}.{parameter}"]
    return bool(found) and all(one.neutral for one in found)


@pytest.mark.parametrize(("name", "parameter"), ROUNDED, ids=[".".join(case) for case in ROUNDED])
def test_parameters_neutral_within_rounding_change_weights_by_rounding(name, parameter):
    model = (MODELS["plain"],) if name in places((MODELS["plain"],)) else next(iter(bases_with(name)))
    base = (*model, QUIET, "Trainer.validation = None", "Trainer.num_steps = 3")
    assert is_neutral_in(name, parameter, *base)
    binding = next(b for _, b in changes_in(base, name, candidates(name)[0].parameters[parameter]) if opens(*base, b))
    ours, theirs = trained(*base), trained(*base, binding)
    for weight, expected in ours.items():  # float32 over three steps of a learning rate of 0.01
        torch.testing.assert_close(theirs[weight], expected, rtol=1e-3, atol=1e-4)


LOUD = {
    "dropout": (),
    "a loss of routers": (EXPERTS.format("SoftmaxRouter"), QUIET),
}


@pytest.mark.parametrize("case", LOUD)
def test_the_micro_batch_size_is_not_neutral_where_something_depends_on_it(case):
    base = (MODELS["plain"], *LOUD[case])
    assert not is_neutral_in("Trainer", "micro_batch_size", *base)
    ours, theirs = trained(*base), trained(*base, "Trainer.micro_batch_size = 2")
    assert max((theirs[weight] - expected).abs().max() for weight, expected in ours.items()) > 1e-3


NOT_ALONE = {
    "dropout": ([], "Trainer.compile"),
    "a loss of routers": ([EXPERTS.format("SoftmaxRouter"), QUIET], "Trainer.micro_batch_size"),
    "dropout of attention": ([QUIET, "Attention.dropout = 0.1"], "Attention.kernel"),
}


@pytest.mark.parametrize("case", NOT_ALONE)
def test_meshes_and_kernels_are_not_neutral_where_draws_or_micro_batches_depend_on_them(case):
    bindings, changed = NOT_ALONE[case]
    base = (MODELS["plain"], *bindings)
    keys = ["Trainer.mesh", "Mesh.data_shard", "Mesh.tensor", "Mesh.sharding", changed]
    assert not any(is_neutral_in(*key.split("."), *base) for key in keys)
    assert is_neutral_in("Mesh", "timeout", *base)
    quiet = (MODELS["plain"], QUIET)
    assert all(is_neutral_in(*key.split("."), *quiet) for key in keys)
    assert loaded(*base, "Mesh.data_shard = 2").fingerprint != loaded(*base).fingerprint
    assert loaded(*quiet, "Mesh.data_shard = 2").fingerprint == loaded(*quiet).fingerprint


def test_parts_of_a_neutral_parameter_are_neutral():
    base = (BASES["validation by name"], "books/TextFiles.pattern = '*.log'")
    changed = loaded(*base, "books/TextFiles.pattern = '*.txt'", "Validation.num_tokens = 300")
    assert changed.fingerprint == loaded(*base).fingerprint
    trains_on_other = loaded(*base, "TextFiles.pattern = '*.txt'")
    assert trains_on_other.fingerprint != loaded(*base).fingerprint
