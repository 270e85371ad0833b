"""Direct preference optimization on the trainer: reference, loss, gradients, micro-batches, adapters, and resuming."""

import json
import math

import pytest
import torch

import ml
from ml.config import ConfigError
from ml.runs import open_teacher
from ml.training import RunError, loop
from ml.training.metrics.throughput import MACHINE_METRICS
from ml.training.preference import ReferenceModel
from ml.training.step import accumulate, train_step

CPU, META = torch.device("cpu"), torch.device("meta")
DPO = """
Trainer.data = @PreferenceData
Trainer.preference = @DirectPreferenceOptimization
PreferenceFiles.paths = {pairs!r}
PreferenceData.validation_fraction = 0.2
Trainer.sequence_length = 64
Trainer.schedule = @ConstantSchedule
CosineSchedule.warmup_steps = %juniper.unset
DecoderBlock.dropout = 0.0
DirectPreferenceOptimization.beta = 0.5
"""
LORA = """
Linear.apply_peft = @LoRA
LoRA.dropout = 0.5
Parameter.lr_scale = 0.0
adapter/Parameter.lr_scale = 1.0
"""


@pytest.fixture
def pairs(tmp_path):
    file = tmp_path / "pairs.jsonl"
    worse = ["a number", "a number that I will not describe"]
    sides = [{"chosen": "odd" if n % 2 else "even", "rejected": worse[n % 3 == 0]} for n in range(60)]
    records = [{"prompt": f"{n} is ", **each} for n, each in enumerate(sides)]
    file.write_text("\n".join(map(json.dumps, records)))
    return str(file)


@pytest.fixture
def base(tiny, run_in, tmp_path, tiny_bindings):
    """The folder of a run to start from."""
    trainer = tiny("Trainer.num_steps = 3", "Trainer.validation = None", "DecoderBlock.dropout = 0.0")
    run, *_ = run_in(trainer, "base")
    bindings = [*tiny_bindings, "Trainer.num_steps = 3", "Trainer.validation = None", "DecoderBlock.dropout = 0.0"]
    config = ml.load(bindings=bindings)
    run.write_config(config.text, config.operative, config.provenance())
    return str(run.path)


@pytest.fixture
def build(tiny, base, pairs):
    """Builds a trainer of preferences that starts from the run."""
    start = f"Trainer.initial_weights = @FromRun\nFromRun.path = {base!r}"
    return lambda *bindings: tiny(DPO.format(pairs=pairs), start, *bindings)


def started(trainer):
    """Returns the state at the start, with the initial weights, and the reference."""
    data, state = trainer.open_data(), trainer.start(CPU)
    trainer.initial_weights.open().load(state, data, lambda line: None)
    return data, state, open_teacher(trainer, CPU)


def by_formula(model, batch):
    """Returns the summed log-probabilities of each answer in float64, by the formula of the softmax."""
    logits = model(batch.tokens, documents=batch.documents).double()
    log_p = logits - logits.exp().sum(-1, keepdim=True).log()
    found = []
    for row, count in enumerate(batch.pairs_per_sequence):
        for side in range(2 * count):
            places = [t for t in range(64) if batch.documents[row, t] == side and batch.targets[row, t] >= 0]
            found.append(sum(log_p[row, t, batch.targets[row, t]] for t in places))
    return found[0::2], found[1::2]


def test_the_reference_is_the_initial_model_and_its_log_probabilities_are_those_of_the_formula(build):
    trainer = build()
    data, state, reference = started(trainer)
    batch = data.training.batch(0, 4)
    scores = reference.inputs(batch, state.model)["preference"].reference
    chosen, rejected = by_formula(state.model.eval(), batch)
    torch.testing.assert_close(scores.chosen[scores.is_pair].double(), torch.stack(chosen), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores.rejected[scores.is_pair].double(), torch.stack(rejected), rtol=1e-5, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in reference.model.parameters())


@pytest.mark.parametrize("chunk", [None, 5])
def test_loss_and_gradient_are_those_of_a_naive_implementation(build, chunk):
    trainer = build(f"LanguageModelHead.loss_chunk_size = {chunk}")
    data, state, reference = started(trainer)
    batch = data.training.batch(0, 3)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in state.model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))  # away from the reference
    sums = accumulate(state, [batch], batch.num_pairs, trainer.precision, CPU, reference)
    gradients = {name: parameter.grad.clone() for name, parameter in state.trained().items()}
    state.optimizer.zero_grad()
    with torch.no_grad():
        of_reference = by_formula(reference.model, batch)
    of_policy = by_formula(state.model, batch)
    terms = [pc - rc - (pr - rr) for pc, pr, rc, rr in zip(*of_policy, *of_reference, strict=True)]
    loss = sum(-torch.log(torch.sigmoid(0.5 * term)) for term in terms) / len(terms)
    loss.backward()
    assert sums.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert sums.parts["reward_accuracy"].item() == pytest.approx(sum(term.item() > 0 for term in terms) / len(terms))
    for name, parameter in state.trained().items():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_micro_batches_and_ranks_give_the_same_loss_and_gradient(build):
    trainer = build()
    data, state, reference = started(trainer)
    batch = data.training.batch(0, 8)
    assert len(set(batch.pairs_per_sequence)) > 1  # a mean of means is another number

    def of(*parts):
        """The loss and gradients of the parts, each of one rank, divided by the pairs of all."""
        losses = []
        for part in parts:
            losses.append(accumulate(state, part, batch.num_pairs, trainer.precision, CPU, reference).loss.item())
        gradients = {name: parameter.grad.clone() for name, parameter in state.trained().items()}
        state.optimizer.zero_grad()
        return sum(losses), gradients

    loss, gradients = of([batch])
    for parts in ([batch.split(1)], [batch.split(3)], [[piece] for piece in batch.split(4)]):
        other, of_parts = of(*parts)
        assert other == pytest.approx(loss, rel=1e-6)
        for name, gradient in gradients.items():
            torch.testing.assert_close(of_parts[name], gradient, rtol=1e-4, atol=1e-7, msg=name)
    result = train_step(state, batch.split(2), trainer.precision, None, CPU, reference)
    assert result.loss.item() == pytest.approx(loss, rel=1e-6)
    assert state.tokens == batch.num_targets


def test_training_prefers_the_chosen_answers_and_measures_it(build, run_in):
    folder, outcome, _ = run_in(build("Trainer.log_every = 1", "Validation.every = 4"))
    records = [json.loads(line) for line in folder.metrics_file.read_text().splitlines()]
    first, last = records[0], records[-1]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)  # the model is the reference
    assert (first["reward_margin"], first["reward_accuracy"]) == (0.0, 0.0)
    assert last["loss"] < 0.3
    assert last["reward_accuracy"] == 1.0
    assert last["reward_margin"] == pytest.approx(last["chosen_reward"] - last["rejected_reward"], rel=1e-5)
    assert last["chosen_log_probability"] - last["rejected_log_probability"] > 1.0
    assert last["validation_reward_accuracy"] > 0.9
    assert last["validation_loss"] < math.log(2)
    assert "validation_bits_per_byte" not in last
    assert outcome.is_finished


def test_a_stopped_run_resumes_with_the_same_reference(build, run_in):
    quiet = ["Trainer.log_every = 1", "Checkpoints.every = 4"]
    whole, *_ = run_in(build(*quiet), "whole")
    run_in(build(*quiet, "Trainer.stop_at_step = 5"), "stopped")
    resumed, *_ = run_in(build(*quiet), "stopped")

    def measured(folder):
        lines = map(json.loads, folder.metrics_file.read_text().splitlines())
        return [{name: x for name, x in line.items() if name not in MACHINE_METRICS} for line in lines]

    assert measured(resumed) == measured(whole)


def test_with_adapters_alone_the_reference_is_the_model_without_them(build):
    trainer = build(LORA)
    data, state, reference = started(trainer)
    assert reference.model is None
    batch = data.training.batch(0, 4)
    torch.manual_seed(0)
    before = reference.inputs(batch, state.model)["preference"].reference
    with torch.no_grad():
        for parameter in state.trained().values():
            parameter.add_(torch.randn_like(parameter))
    after = reference.inputs(batch, state.model)["preference"].reference
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert state.model.training
    named = open_teacher(build(f"DirectPreferenceOptimization.reference = {trainer.initial_weights.path!r}"), CPU)
    assert isinstance(named, ReferenceModel)
    theirs = named.inputs(batch, state.model)["preference"].reference
    torch.testing.assert_close(before.chosen, theirs.chosen)


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("Trainer.data = @TextData", "Trainer.preference needs pairs of answers: set Trainer.data = @PreferenceData"),
        ("Trainer.preference = None", "it has pairs of answers: set Trainer.preference"),
        ("LanguageModelHead.z_loss = 0.1", "has no other terms"),
        ("DirectPreferenceOptimization.beta = 0.0", "beta must be positive"),
        ("DirectPreferenceOptimization.label_smoothing = 0.5", "at least 0 and below 0.5"),
        (
            "DirectPreferenceOptimization.loss = 'ipo'\nDirectPreferenceOptimization.label_smoothing = 0.1",
            "is of the loss 'sigmoid' alone",
        ),
        ("DirectPreferenceOptimization.step = 3", "goes with DirectPreferenceOptimization.reference"),
        ("Trainer.data = @Mixture\nMixture.datasets = {'a': @PreferenceData, 'b': @TextData}\n"
         "Mixture.weights = {'a': 1.0, 'b': 1.0}", "mix pairs of answers with text, which has none: b"),
    ],
)  # fmt: skip
def test_what_does_not_fit_preferences_is_refused(tiny, pairs, binding, message):
    with pytest.raises(ConfigError, match=message):
        tiny(DPO.format(pairs=pairs), binding)


def test_a_run_needs_a_reference_that_fits(tiny, pairs, base, run_in):
    with pytest.raises(RunError, match="has no reference: start from a run"):
        open_teacher(tiny(DPO.format(pairs=pairs)), META)
    named = f"DirectPreferenceOptimization.reference = {base!r}"
    with pytest.raises(RunError, match="vocabulary of the reference"):
        open_teacher(tiny(DPO.format(pairs=pairs), named, "LanguageModel.vocab_size = 300"), META)
    trainer = tiny(DPO.format(pairs=pairs), named)
    with pytest.raises(RunError, match=r"Trainer\.preference with a reference"):
        loop.train(trainer, trainer.open_data(), None, CPU)
    sizes = trainer.mesh_sizes(1)
    with pytest.raises(RunError, match=r"Mesh\.context \(2\) must be 1"):
        trainer.require_fit(sizes._replace(context=2))
