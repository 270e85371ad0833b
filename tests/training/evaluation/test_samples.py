"""Samples while a run trains: there, complete, and without a trace in the weights."""

import json

import pytest
import torch
from saved import saved_bits, trained_model

from ml.errors import UserError
from ml.models.sampling import Sampler
from ml.training import RunError, loop
from ml.training.evaluation.continuations import continue_texts

CPU = torch.device("cpu")
SAMPLES = """
Trainer.samples = @Samples
Samples.every = 5
Samples.prompts = ['12 squared', '']
Samples.num_tokens = 10
"""


def samples_in(folder):
    return [json.loads(line) for line in (folder.path / "samples.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "bindings",
    [
        [],
        ["Trainer.precision = @MixedBFloat16"],
        [
            "DecoderBlock.mixer = @StochasticMixer",
            "StochasticMixer.mixers = {'full': @Attention, 'short': @ShortConvolutionMixer}",
        ],
    ],
    ids=["plain", "bfloat16", "stochastic"],
)
def test_a_run_with_samples_is_bitwise_the_run_without(tiny, run_in, bindings):
    plain, sampled = tiny(*bindings), tiny(SAMPLES, *bindings)
    undisturbed, _, _ = run_in(plain, "plain")
    folder, _, printed = run_in(sampled, "sampled")
    assert saved_bits(folder.checkpoints / "step_12") == saved_bits(undisturbed.checkpoints / "step_12")
    model = sampled.start(CPU).model
    assert list(sampled.samples.draw(model, sampled.data, sampled.precision, CPU))
    assert all(module.training for module in model.modules())
    records = samples_in(folder)
    assert [(record["step"], record["prompt"]) for record in records] == [
        (step, prompt) for step in (5, 10, 12) for prompt in ("12 squared", "")
    ]
    for record in records:
        assert f"step {record['step']} writes {record['prompt'] + record['text']!r}" in printed


def test_what_is_written_is_what_the_model_would_write(tiny, run_in):
    trainer = tiny(SAMPLES, "Samples.temperature = 0.0", "Trainer.num_steps = 3")
    folder, _, _ = run_in(trainer)
    model = trained_model(trainer, folder).eval()
    expected = continue_texts(model, trainer.data.tokenizer, [list(b"12 squared")], 10, Sampler(0.0))
    assert samples_in(folder)[0]["text"] == expected[0].text


def test_a_run_that_died_has_each_sample_once(tiny, run_in, monkeypatch):
    undisturbed, _, _ = run_in(tiny(SAMPLES), "undisturbed")
    take_step = loop.train_step

    def dies_after_six(state, *rest):
        if state.step == 6:  # the checkpoint is of step 4, the samples of step 5
            raise KeyboardInterrupt
        return take_step(state, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", dies_after_six)
        with pytest.raises(KeyboardInterrupt):
            run_in(tiny(SAMPLES), "died")
    folder = undisturbed.path.with_name("died")
    assert {record["step"] for record in map(json.loads, (folder / "samples.jsonl").read_text().splitlines())} == {5}
    with (folder / "samples.jsonl").open("a") as file:
        file.write('{"step": 6, "te')
    died, _, _ = run_in(tiny(SAMPLES), "died")
    assert (died.path / "samples.jsonl").read_bytes() == (undisturbed.path / "samples.jsonl").read_bytes()


def test_a_folder_that_takes_no_samples_ends_the_run_with_a_message(tiny, run_in, tmp_path):
    (tmp_path / "run" / "samples.jsonl").mkdir(parents=True)
    with pytest.raises(UserError, match=r"samples\.jsonl cannot be read: Is a directory"):
        run_in(tiny(SAMPLES))


@pytest.mark.parametrize(
    ("bindings", "message"),
    [
        (["TextData.separator = ''"], "Samples.prompts: the prompt is empty"),
        (
            ["Embeddings.position = @PositionEmbedding", "PositionEmbedding.num_positions = 16"],
            r"Samples.num_tokens = 10 after a prompt of 10 tokens is more than the 16 positions",
        ),
    ],
)
def test_samples_that_cannot_be_written_stop_the_run_before_it_begins(tiny, bindings, message):
    with pytest.raises(RunError, match=message):
        tiny(SAMPLES, *bindings).open_data()


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("every = 0", "every must be positive"),
        ("prompts = []", "prompts must contain at least one prompt"),
        ("num_tokens = 0", "num_tokens must be positive"),
        ("temperature = -1.0", "temperature must be at least 0 and finite"),
        ("top_k = 0", "top_k must be positive"),
        ("top_p = 0.0", "top_p must be above 0"),
        ("min_p = 2.0", "min_p must be from 0 to 1"),
    ],
)
def test_values_out_of_range_are_refused(tiny, binding, message):
    with pytest.raises(ValueError, match=message):
        tiny("Trainer.samples = @Samples", f"Samples.{binding}")


@pytest.mark.slow
def test_samples_are_made_without_the_compiled_blocks(tiny, run_in):
    bindings = [
        "Trainer.compile = True", "Repeat.num_blocks = 1", "Trainer.num_steps = 4", "Trainer.validation = None",
        "Trainer.log_every = 1",
    ]  # fmt: skip
    plain, sampled = tiny(*bindings), tiny(SAMPLES, "Samples.every = 1", *bindings)
    undisturbed, _, _ = run_in(plain, "plain")
    torch._dynamo.utils.counters.clear()
    folder, _, _ = run_in(sampled, "sampled")
    assert saved_bits(folder.checkpoints / "step_4") == saved_bits(undisturbed.checkpoints / "step_4")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 1
