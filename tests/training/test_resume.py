"""A resumed run is bitwise identical to an uninterrupted run."""

import contextlib
import itertools
import signal

import pytest
from saved import saved_bits, saved_tensors, untimed

from ml.data import TextData
from ml.training import RunError, RunFailure, loop
from ml.training.checkpoints.state_files import read_counts
from ml.training.signals import Requests


def stop_after(monkeypatch, steps):
    """Stops after so many steps, like a signal in the middle of a step."""
    requests, taken, take_step = Requests(), itertools.count(1), loop.train_step

    def take(*arguments):
        if next(taken) == steps:
            requests.stop = signal.SIGTERM
        return take_step(*arguments)

    monkeypatch.setattr(loop, "train_step", take)
    monkeypatch.setattr(loop, "handled_signals", lambda **_: contextlib.nullcontext(requests))


def what_it_learned(folder, step):
    """Returns the tensors and counts of a checkpoint, bitwise, and every metric except times."""
    checkpoint = folder.checkpoints / f"step_{step}"
    (counts,) = untimed([read_counts(checkpoint)])
    return saved_bits(checkpoint), counts, untimed(folder.metrics())


@pytest.mark.parametrize("stops", [[6], [1], [4], [3, 3, 5], [1] * 11], ids=str)
def test_a_run_that_was_stopped_is_bitwise_the_run_that_was_not(tiny, run_in, monkeypatch, stops):
    undisturbed, _, _ = run_in(tiny(), "undisturbed")
    with monkeypatch.context() as patch:
        for steps in stops:
            stop_after(patch, steps)
            stopped, outcome, printed = run_in(tiny(), "stopped")
            assert not outcome.is_finished
            assert "resumes from there" in printed
    stopped, outcome, printed = run_in(tiny(), "stopped")
    assert outcome == (12, True)
    assert "resuming from" in printed
    assert what_it_learned(stopped, 12) == what_it_learned(undisturbed, 12)
    assert [record["step"] for record in stopped.metrics()] == [1, 2, 4, 5, 6, 8, 10, 12]


@pytest.mark.parametrize(
    "bindings",
    [
        ["Trainer.precision = @MixedBFloat16"],
        [
            "Trainer.precision = @PureBFloat16\nPureBFloat16.stochastic_rounding = True",
            "AdamW.state_format = @Blockwise8BitState\nBlockwise8BitState.block_size = 8",
        ],
        ["TextData.sampling = @RandomWindows", "block_0/DecoderBlock.lr_scale = 0.0"],
        ["LanguageModel.tie_word_embeddings = True"],
        [
            "Trainer.weight_average = @ExponentialMovingAverage",
            "Trainer.skip_step = @SkipStep\nSkipStep.window = 3\nSkipStep.min_history = 2\nSkipStep.threshold = 0.5",
            "Trainer.samples = @Samples\nSamples.every = 3\nSamples.num_tokens = 5",
        ],
        ["Trainer.optimizer = @Muon", "Trainer.num_loader_workers = 3"],
        ["Trainer.optimizer = @Adafactor", "Checkpoints.asynchronous = False"],
    ],
    ids=str,
)
def test_other_recipes_resume_bitwise_too(tiny, run_in, monkeypatch, bindings):
    undisturbed, _, _ = run_in(tiny(*bindings), "undisturbed")
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        run_in(tiny(*bindings), "stopped")
    stopped, _, _ = run_in(tiny(*bindings), "stopped")
    assert what_it_learned(stopped, 12) == what_it_learned(undisturbed, 12)


def test_dropout_is_on_and_differs_between_steps(tiny, run_in):
    with_dropout, _, _ = run_in(tiny(), "with")
    without, _, _ = run_in(tiny("DecoderBlock.dropout = 0.0"), "without")
    assert [r["loss"] for r in with_dropout.metrics()] != [r["loss"] for r in without.metrics()]


def test_a_run_that_died_between_checkpoints_logs_no_step_twice_and_none_too_few(tiny, run_in, monkeypatch):
    undisturbed, _, _ = run_in(tiny(), "undisturbed")

    def dies_after_seven(state, *rest):
        if state.step == 7:
            raise KeyboardInterrupt
        return take_step(state, *rest)

    take_step = loop.train_step
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", dies_after_seven)
        with pytest.raises(KeyboardInterrupt):
            run_in(tiny(), "died")
    folder = undisturbed.path.with_name("died")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "los')  # a line that was cut off
    died, _, printed = run_in(tiny(), "died")
    assert f"resuming from {folder / 'checkpoints/step_4'}" in printed
    assert what_it_learned(died, 12) == what_it_learned(undisturbed, 12)


def test_a_finished_run_is_left_as_it_is(tiny, run_in):
    folder, _, _ = run_in(tiny())
    before = {file: file.read_bytes() for file in folder.path.rglob("*") if file.is_file()}
    _, outcome, printed = run_in(tiny())
    assert outcome == (12, True)
    assert "trained to step 12" in printed
    assert {file: file.read_bytes() for file in folder.path.rglob("*") if file.is_file()} == before


def test_other_data_is_refused(tiny, run_in, text_file):
    folder, _, _ = run_in(tiny())
    metrics = folder.metrics()
    text_file.write_text(text_file.read_text().replace("squared", "Squared", 1))
    with pytest.raises(RunError, match=r"the data has changed since .*step_12"):
        run_in(tiny())
    assert folder.metrics() == metrics


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("Repeat.num_blocks = 3", r"(?s)of another model:\n  missing:\n    model/decoder.block_2"),
        ("GatedMLP.intermediate_size = 40", r"(?s)of another shape:.*the model has torch.float32 \(40, 16\)"),
        ("Trainer.precision = @PureBFloat16", r"(?s)torch.float32 [^\n]*; the model has torch.bfloat16"),
    ],
)
def test_the_state_of_another_model_is_refused(tiny, run_in, binding, message):
    run_in(tiny())
    with pytest.raises(RunError, match=message):
        run_in(tiny(binding))


def test_a_loss_that_is_not_finite_stops_the_run_and_is_never_saved(tiny, run_in, monkeypatch):
    folder, _, _ = run_in(tiny(), "fine")

    def breaks_at_six(state, *rest):
        if state.step == 5:
            next(state.model.parameters()).data.fill_(float("nan"))
        return take_step(state, *rest)

    take_step = loop.train_step
    # Nothing is logged before step 10: the checkpoint of step 8 is where it comes out.
    trainer = tiny("Trainer.log_every = 10", "Validation.every = None")
    monkeypatch.setattr(loop, "train_step", breaks_at_six)
    with pytest.raises(RunFailure, match=r"not finite since step 6.*checkpoints/step_4 is from before"):
        run_in(trainer, "broken")
    broken = folder.path.with_name("broken")
    assert sorted(path.name for path in (broken / "checkpoints").iterdir()) == ["step_4"]
    tensors = saved_tensors(broken / "checkpoints/step_4")
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert "NaN" not in (broken / "metrics.jsonl").read_text()


def test_the_number_of_micro_batches_changes_the_result_by_rounding_only(tiny, run_in):
    losses = []
    for size in (1, 2, 4):
        trainer = tiny(f"Trainer.micro_batch_size = {size}", "DecoderBlock.dropout = 0.0")
        losses.append([record["loss"] for record in run_in(trainer, f"by_{size}")[0].metrics()])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.slow
def test_compiled_blocks_learn_what_the_plain_ones_do(tiny, run_in):
    bindings = [
        "DecoderBlock.dropout = 0.0",
        "Repeat.num_blocks = 1",
        "Trainer.num_steps = 4",
        "Trainer.validation = None",
    ]
    bindings += ["Trainer.log_every = 1"]
    plain, _, _ = run_in(tiny(*bindings), "plain")
    compiled, _, _ = run_in(tiny(*bindings, "Trainer.compile = True"), "compiled")
    losses = [[record["loss"] for record in folder.metrics()] for folder in (plain, compiled)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)  # fused kernels round in another order


def test_tokens_above_the_vocabulary_are_refused_when_it_is_built(tiny):
    with pytest.raises(ValueError, match=r"its tokens go up to 255, and LanguageModel.vocab_size is 100"):
        tiny("LanguageModel.vocab_size = 100")


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("Trainer.num_steps = 0", "num_steps must be positive"),
        ("Trainer.micro_batch_size = 3", r"micro_batch_size must divide Trainer.batch_size \(4\), not be 3"),
        ("Trainer.max_grad_norm = 0.0", "max_grad_norm must be positive"),
        ("Trainer.seed = -1", "seed must not be negative"),
        ("Checkpoints.keep = 0", "keep must be positive"),
        ("Validation.every = 0", "every must be positive"),
    ],
)
def test_values_out_of_range_are_refused_by_name(tiny, binding, message):
    with pytest.raises(ValueError, match=message):
        tiny(binding)


def test_building_touches_no_file(tiny, monkeypatch):
    monkeypatch.setattr(TextData, "open", lambda *_: pytest.fail("opened"))
    trainer = tiny("TextFiles.paths = '/nowhere'")
    assert all(parameter.is_meta for parameter in trainer.model.parameters())
