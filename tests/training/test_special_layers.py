"""Training with stochastic layers, routers, adapters, a teacher, and frozen parts."""

import json

import pytest
import torch
from saved import saved_tensors, trained_model
from test_resume import stop_after, what_it_learned

import ml
from ml.errors import UserError
from ml.models import (
    load_adapters,
    merge_adapters,
    named_parameters_with_scales,
    save_adapters,
    unmerge_adapters,
)
from ml.models.adapters import adapter_weights
from ml.runs import open_teacher
from ml.training import FromRun, RunError, RunFolder, train
from ml.training.metrics.router_load import load_balance
from ml.training.step import train_step

CPU = torch.device("cpu")
META = torch.device("meta")
STOCHASTIC = [
    "DecoderBlock.mixer = @StochasticMixer",
    "StochasticMixer.mixers = {'full': @Attention, 'short': @ShortConvolutionMixer}",
    "StochasticMixer.weights = {'full': 1.0, 'short': 3.0}",
    "full/Attention.rotary = @Rotary",
]
EXPERTS = [
    "DecoderBlock.mlp = @MixtureOfExperts",
    "MixtureOfExperts.num_experts = 5",
    "MixtureOfExperts.router = @SigmoidRouter",
    "SigmoidRouter.bias_update_rate = 0.01",
    "experts/GatedMLP.intermediate_size = 8",
]
EXPERTS_BY_SOFTMAX = [
    "DecoderBlock.mlp = @MixtureOfExperts",
    "MixtureOfExperts.num_experts = 5",
    "MixtureOfExperts.router = @SoftmaxRouter",
    "SoftmaxRouter.auxiliary_loss = 0.05",
    "SoftmaxRouter.z_loss = 0.01",
]
MULTI_TOKEN = ["LanguageModel.multi_token = @MultiTokenPrediction", "MultiTokenPrediction.num_depths = 2"]
ADAPTERS = ["Linear.apply_peft = @LoRA", "Parameter.lr_scale = 0.0", "adapter/Parameter.lr_scale = 1.0"]
PACKED = ["TextData.separate_documents = True", "TextData.separator = ' '"]
KINDS = {
    "stochastic mixer": STOCHASTIC,
    "sigmoid router": EXPERTS,
    "softmax router": EXPERTS_BY_SOFTMAX,
    "multi-token": MULTI_TOKEN,
    "adapters": ADAPTERS,
    "documents apart": PACKED,
    "checkpointed": ["DecoderBlock.activation_checkpointing = @ActivationCheckpointing"],
    "checkpointed experts": [*EXPERTS_BY_SOFTMAX, "DecoderBlock.activation_checkpointing = @ActivationCheckpointing"],
    "chunked loss": ["LanguageModelHead.loss_chunk_size = 7"],
}


@pytest.mark.parametrize("bindings", KINDS.values(), ids=KINDS)
def test_a_run_that_was_stopped_is_bitwise_the_run_that_was_not(tiny, run_in, monkeypatch, bindings):
    undisturbed, _, _ = run_in(tiny(*bindings), "undisturbed")
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        run_in(tiny(*bindings), "stopped")
    stopped, outcome, _ = run_in(tiny(*bindings), "stopped")
    assert outcome.is_finished
    assert what_it_learned(stopped, 12) == what_it_learned(undisturbed, 12)


def test_checkpointed_experts_learn_what_others_learn(tiny, run_in):
    """The sums of a router are taken once, though its layer is computed twice."""
    plain, _, _ = run_in(tiny(*EXPERTS_BY_SOFTMAX), "plain")
    checkpointed, _, _ = run_in(tiny(*KINDS["checkpointed experts"]), "checkpointed")
    assert what_it_learned(plain, 12) == what_it_learned(checkpointed, 12)


def steps_of(trainer, count):
    """Trains `count` steps by hand; yields the state after each."""
    dataset, state = trainer.open_data().training, trainer.start(CPU)
    for step in range(1, count + 1):
        result = train_step(state, trainer.batches(dataset, step), trainer.precision, None, CPU)
        yield state, result


def test_a_mixer_is_drawn_once_a_step_by_its_weight(tiny, run_in, monkeypatch):
    from ml.layers import StochasticMixer

    drawn, used = [], []
    draw, forward = StochasticMixer.draw, StochasticMixer.forward
    monkeypatch.setattr(StochasticMixer, "draw", lambda self, g: (draw(self, g), drawn.append(self.drawn))[0])
    monkeypatch.setattr(
        StochasticMixer, "forward", lambda self, *a: (used.append((self.training, self.drawn)), forward(self, *a))[1]
    )
    run_in(tiny(*STOCHASTIC, "Trainer.num_steps = 200", "Validation.every = None"))
    assert len(drawn) == 400  # two blocks
    # 400 draws of a coin with 3/4: the standard deviation is 8.7.
    assert drawn.count("short") == pytest.approx(300, abs=35)
    assert drawn[0::2] != drawn[1::2]  # each block by itself
    training = [name for is_training, name in used if is_training]
    assert training == [
        name for pair in zip(drawn[0::2], drawn[1::2], strict=True) for name in pair * 2
    ]  # micro-batches


def test_metrics_tell_how_routers_spread_and_what_they_cost(tiny, run_in):
    folder, _, _ = run_in(tiny(*EXPERTS_BY_SOFTMAX))
    for record in folder.metrics():
        assert record["router_loss"] > 0
        assert set(record["routers"]) == {f"decoder.block_{i}.mlp.router" for i in range(2)}
        for load in record["routers"].values():
            assert 1.0 <= load["busiest"] <= 5.0
            assert 0.0 <= load["idle"] < 1.0
            assert 0.0 <= load["entropy"] <= 1.0
    assert all(record["multi_token_loss"] > 0 for record in run_in(tiny(*MULTI_TOKEN), "other")[0].metrics())


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        ([3.0, 3.0, 3.0, 3.0], {"busiest": 1.0, "idle": 0.0, "entropy": 1.0}),
        ([8.0, 0.0, 0.0, 0.0], {"busiest": 4.0, "idle": 0.75, "entropy": 0.0}),
        ([2.0, 2.0, 0.0, 0.0], {"busiest": 2.0, "idle": 0.5, "entropy": 0.5}),
        ([5.0], {"busiest": 1.0, "idle": 0.0, "entropy": 1.0}),
    ],
)
def test_spread_of_known_loads(load, expected):
    assert load_balance(torch.tensor(load)) == pytest.approx(expected)


def test_the_balance_of_a_router_is_of_the_whole_step_and_is_saved(tiny, run_in):
    (state, result), *_ = steps_of(tiny(*EXPERTS), 1)
    router = state.model.decoder.block_0.mlp.router
    load = result.loads["decoder.block_0.mlp.router"]
    assert load.sum() == 4 * 16 * 2  # sequences, tokens, experts of a token: both micro-batches
    torch.testing.assert_close(router.balance_bias, 0.01 * torch.sign(load.mean() - load))
    folder, _, _ = run_in(tiny(*EXPERTS))
    saved = saved_tensors(folder.checkpoints / "step_12")
    assert saved["model/decoder.block_0.mlp.router.balance_bias"].abs().max() > 0


def test_with_adapters_everything_else_stays_as_it_was(tiny):
    trainer = tiny(*ADAPTERS)
    before = {name: p.detach().clone() for name, p in trainer.start(CPU).model.named_parameters()}
    *_, (state, _) = steps_of(tiny(*ADAPTERS), 3)
    changed = {name for name, p in state.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == set(adapter_weights(state.model))
    assert set(state.trained()) == changed
    assert all(p.grad is None for name, p in state.model.named_parameters() if name not in changed)


def test_adapters_start_from_a_run_without_them_and_travel_alone(tiny, run_in, tmp_path):
    base, _, _ = run_in(tiny(), "base")
    start = base.checkpoints / "step_12"
    trainer, folder = tiny(*ADAPTERS), RunFolder(tmp_path / "adapted")
    train(trainer, trainer.open_data(), folder, CPU, initial=FromRun(path=str(start)).open())
    tuned = trained_model(trainer, folder).eval()
    saved = {name.removeprefix("model/"): tensor for name, tensor in saved_tensors(start).items()}
    for name, parameter in tuned.named_parameters():
        assert ("adapter" in name) != (name in saved and torch.equal(parameter, saved[name])), name

    file = tmp_path / "adapters.safetensors"
    save_adapters(tuned, file)
    other = tiny(*ADAPTERS).start(CPU).model.eval()
    ml.training.checkpoints.weight_files.read_weights(start, other, may_lack=adapter_weights(other))
    tokens = torch.arange(30)[None]
    assert not torch.equal(other(tokens), tuned(tokens))
    load_adapters(other, file)
    assert torch.equal(other(tokens), tuned(tokens))
    wider = tiny(*ADAPTERS, "LoRA.rank = 3").start(CPU).model
    with pytest.raises(UserError, match=r"is \(8, 16\), the model's is \(3, 16\): another LoRA.rank"):
        load_adapters(wider, file)
    with pytest.raises(UserError, match="has no adapters to save"):
        save_adapters(tiny().start(CPU).model, file)
    with pytest.raises(UserError, match="is of another model: missing"):
        load_adapters(tiny(*ADAPTERS, "Repeat.num_blocks = 3").start(CPU).model, file)


def test_a_run_that_lacks_more_than_adapters_is_refused(tiny, run_in, tmp_path):
    base, _, _ = run_in(tiny(), "base")
    trainer = tiny(*ADAPTERS, "Repeat.num_blocks = 3")
    initial = FromRun(path=str(base.checkpoints / "step_12")).open()
    with pytest.raises(RunError, match=r"(?s)is of another model:\n  missing:\n    decoder\.block_2"):
        train(trainer, trainer.open_data(), RunFolder(tmp_path / "x"), CPU, initial=initial)


def test_adapters_of_shared_weights_are_merged_and_saved_once(tiny, tmp_path):
    bindings = [*ADAPTERS, "Repeat.shared = True", "LoRA.B_initialization = @normal"]
    model, other = (tiny(*bindings, f"Trainer.seed = {seed}").start(CPU).model.eval() for seed in (0, 1))
    tokens = torch.arange(30)[None]
    before, weight = model(tokens), model.decoder.block_0.mlp.up.weight.clone()
    merge_adapters(model)
    assert not torch.equal(model.decoder.block_0.mlp.up.weight, weight)
    torch.testing.assert_close(model(tokens), before, rtol=1e-4, atol=1e-5)
    unmerge_adapters(model)
    assert torch.equal(model.decoder.block_0.mlp.up.weight, weight)
    save_adapters(model, tmp_path / "adapters.safetensors")
    base = other.decoder.block_1.mlp.up.weight.clone()
    merge_adapters(other)
    load_adapters(other, tmp_path / "adapters.safetensors")
    merged = other(tokens)
    unmerge_adapters(other)
    assert torch.equal(other.decoder.block_1.mlp.up.weight, base)
    torch.testing.assert_close(other(tokens), merged, rtol=1e-4, atol=1e-5)
    assert torch.equal(other.decoder.block_1.mlp.up.adapter.B, model.decoder.block_0.mlp.up.adapter.B)


def test_the_balance_of_a_frozen_router_stays(tiny):
    frozen = [*EXPERTS, "router/weight/Parameter.lr_scale = 0.0"]
    *_, (state, result) = steps_of(tiny(*frozen), 2)
    assert state.model.decoder.block_0.mlp.router.balance_bias.eq(0).all()
    assert result.loads


def test_loads_are_counted_once_where_activations_are_computed_twice(tiny):
    (_, result), *_ = steps_of(tiny(*KINDS["checkpointed experts"]), 1)
    assert [load.sum().item() for load in result.loads.values()] == [4 * 16 * 2] * 2


def test_micro_batches_do_not_change_the_gradient_of_further_tokens(tiny):
    bindings = [*MULTI_TOKEN, *PACKED, "DecoderBlock.dropout = 0.0"]
    norms = [
        next(steps_of(tiny(*bindings, f"Trainer.micro_batch_size = {size}"), 1))[1].grad_norm for size in (1, 2, 4)
    ]
    torch.testing.assert_close(norms[0], norms[2], rtol=1e-5, atol=0)
    torch.testing.assert_close(norms[1], norms[2], rtol=1e-5, atol=0)


def test_further_tokens_can_be_predicted_in_every_recipe_of_llama_kind():
    config = ml.load("recipes/tiny.gin", ["LanguageModel.multi_token = @MultiTokenPrediction"])
    weight = ml.build(config).multi_token.depth_0.block.mixer.output.weight
    # Two blocks and one depth: 0.02 / √6, and 4,096 draws are within 4 % for any seed that one would meet.
    assert weight.std().item() == pytest.approx(0.02 / 6**0.5, rel=0.05)


def test_an_initialization_without_its_depth_is_found_when_the_configuration_is_loaded():
    with pytest.raises(ml.ConfigError, match=r"scales head\.weight with the depth"):
        ml.load("recipes/tiny.gin", ["LanguageModelHead.weight_initialization = @scaled_normal"])


FROZEN = "block_0/DecoderBlock.lr_scale = {}"


def test_the_rest_trains_bitwise_as_if_a_frozen_block_had_a_learning_rate_of_zero(tiny):
    frozen, free = tiny(FROZEN.format(0.0)), tiny(FROZEN.format(0.5))
    data, states = frozen.open_data().training, [frozen.start(CPU), free.start(CPU)]
    for group in states[1].optimizer.param_groups:
        for parameter in group["params"]:
            if any(parameter is p for p in states[1].model.decoder.block_0.parameters()):
                group["lr"] = 0.0
    for step in range(1, 6):
        for state in states:
            torch.manual_seed(step)
            train_step(state, frozen.batches(data, step), frozen.precision, None, CPU)
    named = dict(states[1].model.named_parameters())
    for name, parameter in states[0].model.named_parameters():
        assert torch.equal(parameter, named[name]), name
        assert parameter.requires_grad != name.startswith("decoder.block_0.")
    names = {name for group in states[0].groups for name in group.names}
    assert not any(name.startswith("decoder.block_0.") for name in names)
    assert len(states[0].optimizer.state) == len(names)


def test_six_halves_on_a_path_from_a_file_are_a_sixty_fourth(tiny):
    places = [
        "LanguageModel.lr_scale = 0.5", "Repeat.lr_scale = 0.5", "block_1/DecoderBlock.lr_scale = 0.5",
        "Attention.lr_scale = 0.5", "query/Linear.lr_scale = 0.5", "query/weight/Parameter.lr_scale = 0.5",
    ]  # fmt: skip
    model = tiny(*places).start(CPU).model
    scales = {scaled.name: scaled.lr_scale for scaled in named_parameters_with_scales(model)}
    assert scales["decoder.block_1.mixer.query.weight"] == 0.015625
    assert scales["decoder.block_0.mixer.query.weight"] == 0.03125
    assert scales["decoder.block_1.mixer.query.bias"] == 0.03125
    assert scales["decoder.block_1.mlp.up.weight"] == 0.125


@pytest.fixture
def teacher(tmp_path, tiny_bindings):
    """The folder of a finished run."""
    config = ml.load(bindings=tiny_bindings)
    trainer, folder = ml.api.build_trainer(config), RunFolder(tmp_path / "teacher")
    folder.create()
    folder.write_config(config.text, config.operative, config.provenance())
    train(trainer, trainer.open_data(), folder, CPU)
    return folder.path


def test_a_teacher_of_shorter_sequences_or_without_eyes_is_refused(tmp_path, tiny_bindings):
    import test_training_on_images as images

    short = ["Embeddings.position = @PositionEmbedding", "PositionEmbedding.num_positions = 8"]
    text = [
        *tiny_bindings,
        "Trainer.num_steps = 1",
        "CosineSchedule.warmup_steps = 0",
        "LanguageModel.vocab_size = 257",
    ]
    for name, bindings in {"short": [*text, *short, "Trainer.sequence_length = 8"], "blind": text}.items():
        config = ml.load(bindings=bindings, allow_unused_bindings=True)
        trainer, folder = ml.api.build_trainer(config), RunFolder(tmp_path / name)
        folder.create()
        folder.write_config(config.text, config.operative, config.provenance())
        train(trainer, trainer.open_data(), folder, CPU)
    distilled = ["Trainer.distillation = @Distillation", "Distillation.teacher = {!r}"]
    student = ml.load(
        bindings=[*text, distilled[0], distilled[1].format(str(tmp_path / "short"))], allow_unused_bindings=True
    )
    with pytest.raises(RunError, match=r"takes 8 tokens; Trainer\.sequence_length is 16"):
        open_teacher(ml.api.build_trainer(student), CPU)
    seeing = [images.SHAPES, distilled[0], distilled[1].format(str(tmp_path / "blind"))]
    student = ml.load(["models/llama.gin"], seeing)
    with pytest.raises(RunError, match=r"image_token_id of the teacher .* is None, that of the model 256"):
        open_teacher(ml.api.build_trainer(student), CPU)


def test_a_student_comes_closer_to_its_teacher(tiny, run_in, teacher):
    bindings = [
        "Trainer.distillation = @Distillation", f"Distillation.teacher = {str(teacher)!r}", "Distillation.weight = 1.0",
        "Repeat.num_blocks = 1", "Trainer.num_steps = 60", "DecoderBlock.dropout = 0.0", "Trainer.log_every = 1",
    ]  # fmt: skip
    folder, _, _ = run_in(tiny(*bindings), "student")
    losses = [record["distillation_loss"] for record in folder.metrics()]
    assert all(loss >= 0 for loss in losses)  # a divergence
    assert sum(losses[-5:]) < 0.2 * sum(losses[:5])


def test_a_teacher_that_does_not_fit_is_refused_before_anything_is_written(tiny, teacher):
    distilled = ["Trainer.distillation = @Distillation", "Distillation.teacher = {!r}"]
    with pytest.raises(UserError, match="there is no run in nowhere"):
        open_teacher(tiny(distilled[0], distilled[1].format("nowhere")), CPU)
    with pytest.raises(UserError, match="there is no checkpoint of step 3"):
        open_teacher(tiny(distilled[0], distilled[1].format(str(teacher)), "Distillation.step = 3"), META)
    with pytest.raises(UserError, match=r"the vocabulary of the teacher .* has 256 tokens, that of the model 300"):
        open_teacher(tiny(distilled[0], distilled[1].format(str(teacher)), "LanguageModel.vocab_size = 300"), META)


def refuse(*_):
    raise ValueError("no")


def test_parts_that_do_not_fit_are_named_at_the_first_step(tiny, run_in, monkeypatch):
    from ml.layers import GatedMLP

    monkeypatch.setattr(GatedMLP, "forward", refuse)
    with pytest.raises(RunError, match="the first step cannot be taken: no"):
        run_in(tiny())


def test_documents_of_a_sequence_do_not_meet(tiny):
    trainer = tiny("TextData.separate_documents = True")
    dataset = trainer.open_data().training
    batch = dataset.batch(0, 4)
    assert batch.documents.shape == batch.tokens.shape
    assert json.dumps(dataset.describe())
