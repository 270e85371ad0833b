"""A training step on CUDA, of every recipe, mixer and optimizer, on a machine that has no GPU.

The steps run on tensors without values, under `CudaRules`. Seen are tensors on two devices, shapes that do not fit,
operations without a CUDA kernel, and every synchronization: a value that the host reads, a copy that it awaits. Not
seen are wrong values, the dtypes and sizes that a kernel takes unless torch's function of shapes checks them, the
kernels that torch chooses by itself (attention runs as its plain formula), memory, and speed.
"""

import json

import pytest
import torch
from cuda_rules import RuleBroken
from layers.mixer_cases import MIXERS
from test_recipes import CONFIGS, RECIPES, SMALL, TRAINING, load, write_data
from training_on_cuda import CUDA, run_on_cuda

from ml.api import build_trainer
from ml.blocks import ActivationCheckpointing, DecoderBlock, SelectiveActivationCheckpointing
from ml.config.configurable import candidates, known_names
from ml.layers import Cache, Context
from ml.layers.context import places_in_documents
from ml.models import materialize
from ml.training.checkpoints.staging import Staging
from ml.training.device_limits import synchronizations_on
from ml.training.distillation import TeacherModel
from ml.training.errors import RunError
from ml.training.optimizers import Optimizer
from ml.training.optimizers.state_formats import StateFormat
from ml.training.precision import Precision

ONE_STEP = [
    *(binding for binding in TRAINING if not binding.startswith("Trainer.precision")),
    "Trainer.num_steps = 1",
    "Trainer.batch_size = 1",
]
SKIP_AND_AVERAGE = [
    "Trainer.skip_step = @SkipStep",
    "Trainer.weight_average = @ExponentialMovingAverage",
]
B, T, H = 2, 24, 16


def subclasses(base: type) -> list[str]:
    """Returns the names of the subclasses of a class in Juniper."""
    infos = [info for name in known_names() for info in candidates(name) if info.selector.startswith("ml.")]
    return sorted(info.name for info in infos if isinstance(info.target, type) and issubclass(info.target, base))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_data([f"{number} and {number + 1}.\n" for number in range(400)])
    return folder


@pytest.fixture
def run(data, tmp_path, monkeypatch, cuda):
    """Trains a recipe for a few steps and returns the folder of the run."""

    def run(recipe, bindings, logs):
        monkeypatch.chdir(data)
        trainer = build_trainer(load(recipe, bindings, allow_unused_bindings=True))
        run_on_cuda(trainer, tmp_path / "run", cuda, logs)
        return tmp_path / "run"

    return run


@pytest.mark.parametrize("recipe", CONFIGS)
def test_a_recipe_trains_validates_and_saves(recipe, run):
    precision = [] if recipe in RECIPES else ["Trainer.precision = @MixedBFloat16"]  # a model alone has none
    folder = run(recipe, [*ONE_STEP, *precision, *SMALL[recipe]], [True])
    assert (folder / "checkpoints" / "step_1").is_dir()
    expected = {"validation_loss"} | ({"reward_margin"} if recipe == "recipes/dpo.gin" else set())
    assert expected <= json.loads((folder / "metrics.jsonl").read_text()).keys()


@pytest.mark.parametrize("further", [[], ["LanguageModelHead.loss_chunk_size = 8"]], ids=["whole", "in chunks"])
def test_a_teacher_is_learned_from(further, run, monkeypatch):
    taught = []
    original = TeacherModel.inputs
    monkeypatch.setattr(TeacherModel, "inputs", lambda *args: taught.append(args) or original(*args))
    distillation = ["Trainer.distillation = @Distillation", "Distillation.teacher = 'teacher'", *further]
    one_block = ["decoder/Repeat.num_blocks = 1", "Trainer.validation = None"]
    run("recipes/tiny.gin", [*ONE_STEP, *one_block, *distillation], [True])
    assert len(taught) == 1


SAMPLES = ["Trainer.samples = @Samples", "Samples.prompts = ['1 and', '12']", "Samples.num_tokens = 4"]


@pytest.mark.parametrize("options", [["temperature = 0.0"], ["top_k = 50", "top_p = 0.9", "min_p = 0.01"]], ids=str)
def test_text_is_sampled(options, run):
    bindings = [
        *ONE_STEP,
        "decoder/Repeat.num_blocks = 1",
        "Trainer.validation = None",
        *SAMPLES,
        *(f"Samples.{option}" for option in options),
    ]
    folder = run("recipes/tiny.gin", bindings, [True])
    assert len((folder / "samples.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("further", [[], SKIP_AND_AVERAGE], ids=["plain", "skip and average"])
@pytest.mark.parametrize("optimizer", subclasses(Optimizer))
def test_an_optimizer_steps(optimizer, further, run):
    bindings = [*TRAINING, "Trainer.num_steps = 9", "Trainer.log_every = 9", *further]
    one_block = ["decoder/Repeat.num_blocks = 1", f"Trainer.optimizer = @{optimizer}"]
    run("recipes/tiny.gin", [*bindings, *one_block], [True, False])


@pytest.mark.parametrize("precision", subclasses(Precision))
def test_every_precision_accumulates_and_logs_norms(precision, run):
    bindings = [*TRAINING, "Trainer.norms = @Norms", f"Trainer.precision = @{precision}"]
    run("recipes/tiny.gin", [*bindings, "Trainer.num_steps = 9", "Trainer.log_every = 9"], [True, False])


@pytest.mark.parametrize("state_format", subclasses(StateFormat))
def test_every_state_format_is_stored_with_stochastic_rounding(state_format, run):
    weights = ["Trainer.precision = @PureBFloat16", "PureBFloat16.stochastic_rounding = True"]
    state = [f"AdamW.state_format = @{state_format}", "decoder/Repeat.num_blocks = 1"]
    bindings = [*TRAINING, "Trainer.num_steps = 9", "Trainer.log_every = 9", *weights, *state]
    run("recipes/tiny.gin", bindings, [True, False])


def inputs(documents: bool) -> tuple[torch.Tensor, Context]:
    x = torch.ones(B, T, H, device=CUDA, requires_grad=True)
    if not documents:
        return x, Context()
    numbers = torch.zeros(B, T, dtype=torch.int64, device=CUDA)
    return x, Context(places_in_documents(numbers), numbers)


@pytest.mark.parametrize(
    ("dtype", "documents"), [(torch.float32, False), (torch.bfloat16, True)], ids=["float32", "bfloat16, packed"]
)
@pytest.mark.parametrize("mixer", MIXERS.values(), ids=MIXERS)
def test_a_mixer_trains(mixer, dtype, documents, cuda):
    is_ready = False
    with cuda(lambda place: not is_ready):
        layer, (x, context) = materialize(mixer(H), CUDA), inputs(documents)
        is_ready = True
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            output = layer(x, context)
        output.float().square().sum().backward()
    assert (x.grad.device, x.grad.shape) == (CUDA, x.shape)
    assert all(parameter.grad.device == CUDA for parameter in layer.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("mixer", MIXERS.values(), ids=MIXERS)
def test_a_mixer_decodes(mixer, cuda):
    is_ready = False
    with cuda(lambda place: not is_ready), torch.no_grad():
        layer, (x, _), cache = materialize(mixer(H), CUDA).eval(), inputs(False), Cache()
        is_ready = True
        for piece in x.split((T - 2, 1, 1), dim=1):
            length = piece.shape[1]
            positions = torch.arange(cache.num_tokens, cache.num_tokens + length, device=CUDA)
            output = layer(piece, Context(positions, cache=cache))
            cache.advance(length, None)
    assert (output.device, output.shape) == (CUDA, (B, 1, H))


EXPERTS = {
    "in float32": ("Float32", [], "in float32; set Trainer.precision = @MixedBFloat16"),
    "not grouped": ("MixedBFloat16", ["MixtureOfExperts.grouped = False"], "set MixtureOfExperts.grouped = None"),
    "neither": (
        "Float32",
        ["MixtureOfExperts.grouped = False"],
        "set MixtureOfExperts.grouped = None and Trainer.precision = @MixedBFloat16",
    ),
    "of odd sizes": ("MixedBFloat16", ["GatedMLP.intermediate_size = 12"], "grouped takes layers whose sizes"),
    "grouped": ("MixedBFloat16", [], None),
    "grouped in bfloat16": ("PureBFloat16", ["MixtureOfExperts.grouped = True"], None),
}


@pytest.mark.parametrize(("precision", "bindings", "warning"), EXPERTS.values(), ids=EXPERTS)
def test_experts_synchronize_only_with_a_warning(precision, bindings, warning, run):
    experts = [
        "DecoderBlock.mlp = @MixtureOfExperts",
        "MixtureOfExperts.num_experts = 4",
        "decoder/Repeat.num_blocks = 1",
    ]
    bindings = [*experts, "GatedMLP.intermediate_size = 16", *bindings, *ONE_STEP, f"Trainer.precision = @{precision}"]
    trainer = build_trainer(load("recipes/tiny.gin", bindings, allow_unused_bindings=True))
    warnings = synchronizations_on(trainer.model, trainer.attention_pass("cuda"))
    assert not synchronizations_on(trainer.model, trainer.attention_pass("cpu"))
    if warning is None:
        assert not warnings
        run("recipes/tiny.gin", bindings, [True])
    else:
        (found,) = warnings
        assert found.startswith(
            "every step synchronizes with cuda, which makes it slower: decoder/block_0/mlp/experts: "
        )
        assert warning in found
        with pytest.raises(RuleBroken, match=r"layers/experts\.py: shares_of_experts"):
            run("recipes/tiny.gin", bindings, [True])


@pytest.mark.parametrize("has_documents", [True, False])
def test_documents_of_variable_length_attention_are_counted_only_with_a_warning(has_documents, run):
    bindings = [
        f"TextData.separate_documents = {has_documents}",
        "Attention.kernel = @VariableLengthAttention",
        *ONE_STEP,
        "Trainer.precision = @MixedBFloat16",
    ]
    trainer = build_trainer(load("recipes/tiny.gin", bindings, allow_unused_bindings=True))
    assert not synchronizations_on(trainer.model, trainer.attention_pass("cpu"))
    warnings = synchronizations_on(trainer.model, trainer.attention_pass("cuda"))
    if has_documents:
        (found,) = warnings
        assert "decoder/block_0_to_1/mixer: Attention.kernel = @VariableLengthAttention counts the documents" in found
        with pytest.raises(RuleBroken, match=r"variable_length\.py"):
            run("recipes/tiny.gin", bindings, [True])
    else:
        assert not warnings
        run("recipes/tiny.gin", bindings, [True])


def test_grouped_products_in_float32_are_refused_before_a_run_on_cuda():
    bindings = ["DecoderBlock.mlp = @MixtureOfExperts", "MixtureOfExperts.grouped = True"]
    trainer = build_trainer(load("recipes/tiny.gin", bindings))
    with pytest.raises(RunError) as caught:
        trainer.check_machine(CUDA)
    assert str(caught.value) == (
        "decoder/block_0_to_1/mlp/experts: MixtureOfExperts.grouped = True needs matrix products in bfloat16 on CUDA, "
        "not float32: set Trainer.precision = @MixedBFloat16, or MixtureOfExperts.grouped = None"
    )
    trainer.check_machine(torch.device("cpu"))
    build_trainer(load("recipes/tiny.gin", [*bindings, "Trainer.precision = @MixedBFloat16"])).check_machine(CUDA)


@pytest.mark.parametrize("policy", [ActivationCheckpointing, SelectiveActivationCheckpointing])
def test_activations_are_recomputed(policy, cuda):
    is_ready = False
    with cuda(lambda place: not is_ready):
        layer = materialize(
            DecoderBlock(H, mixer=MIXERS["attention"], activation_checkpointing=policy, dropout=0.1), CUDA
        )
        x, context = inputs(False)
        is_ready = True
        layer(x, context).square().sum().backward()
    assert x.grad.device == CUDA


def test_a_checkpoint_is_staged_in_page_locked_memory_with_one_event(cuda):
    with cuda() as rules:
        staging = Staging()
        tensors = {"weight": torch.ones(3, 2, device=CUDA).T, "step": torch.ones(())}
        copies, wait = staging.copy(tensors)
        again, _ = staging.copy(tensors)
        event = wait.__self__
        assert (event.is_recorded, event.is_awaited) == (True, False)
        wait()
    assert event.is_awaited
    assert rules.is_pinned(copies["weight"])
    assert {name: copy.device.type for name, copy in copies.items()} == {"weight": "cpu", "step": "cpu"}
    assert all(again[name] is copies[name] for name in copies)
