"""Training on a CUDA device."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from devices import CPU, CUDA, relative_error
from saved import saved_tensors, trained_model, untimed

from ml.training import RunFolder, train
from ml.training.checkpoints.staging import Staging
from ml.training.step import train_step

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).resolve().parents[2]
SKIP_AND_AVERAGE = "Trainer.skip_step = @SkipStep\nTrainer.weight_average = @ExponentialMovingAverage"


def steps(trainer, device, count):
    """The losses of the first steps, as tensors on the device."""
    dataset, state = trainer.open_data().training, trainer.start(device)
    batches = [trainer.batches(dataset, step) for step in range(1, count + 1)]
    return [train_step(state, b, trainer.precision, trainer.max_grad_norm, device).loss for b in batches]


def test_initial_weights_are_those_of_the_cpu(tiny):
    ours, theirs = (dict(tiny().start(device).model.named_parameters()) for device in (CUDA, CPU))
    assert all(torch.equal(ours[name].cpu(), theirs[name]) for name in theirs)


def test_training_follows_the_cpu(tiny):
    # Not AdamW, which divides a gradient by its size and so makes a whole update of a rounding error.
    bindings = ["DecoderBlock.dropout = 0.0", "Trainer.optimizer = @SGD"]
    ours, theirs = (steps(tiny(*bindings), device, 5) for device in (CUDA, CPU))
    # float32 on both: sums in another order differ in the last digits, and five steps let that grow a little
    torch.testing.assert_close(torch.stack(ours).cpu(), torch.stack(theirs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", ["Float32", "MixedBFloat16", "PureBFloat16"])
@pytest.mark.parametrize("optimizer", ["AdamW", "SGD", "Lion", "Muon", "Adafactor"])
@pytest.mark.parametrize("further", ["", SKIP_AND_AVERAGE])
def test_a_step_never_synchronizes(tiny, precision, optimizer, further):
    trainer = tiny(f"Trainer.precision = @{precision}", f"Trainer.optimizer = @{optimizer}", further)
    dataset, state = trainer.open_data().training, trainer.start(CUDA)
    batches = [[b.pinned() for b in trainer.batches(dataset, step)] for step in (1, 2, 3)]
    train_step(state, batches[0], trainer.precision, trainer.max_grad_norm, CUDA)  # the first one sets up libraries
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches[1:]:
            train_step(state, batch, trainer.precision, trainer.max_grad_norm, CUDA)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_staged_copy_has_the_values_of_its_moment_in_page_locked_memory():
    staging, expected = Staging(), torch.arange(2.0**22)
    weight = expected.to(CUDA, copy=True)
    for _ in range(2):  # the second copy reuses the memory of the first
        copies, wait = staging.copy({"weight": weight, "step": torch.ones(())})
        weight.zero_()  # the next step
        wait()
        assert torch.equal(copies["weight"], expected)
        assert copies["weight"].is_pinned()
        weight.copy_(expected)


def test_a_run_validates_samples_and_saves_what_the_cpu_can_read(tiny, tmp_path):
    bindings = ["Trainer.samples = @Samples\nSamples.every = 3\nSamples.num_tokens = 5", "Trainer.num_steps = 6"]
    trainer, folder = tiny(SKIP_AND_AVERAGE, *bindings), RunFolder(tmp_path / "run")
    outcome = train(trainer, trainer.open_data(), folder, CUDA, stream=io.StringIO())
    assert outcome == (6, True)
    records = {record["step"]: record for record in folder.metrics()}
    assert {"validation_loss", "average_validation_loss"} <= records[6].keys()
    weights = dict(trained_model(trainer, folder).named_parameters())
    saved = saved_tensors(folder.checkpoints / "step_6")
    assert all(torch.equal(saved[f"model/{name}"], weight) for name, weight in weights.items())


HYBRID = """
LanguageModel.hidden_size = 64
LanguageModel.decoder = @Pattern
Pattern.blocks = {'local': @DecoderBlock, 'ssm': @DecoderBlock}
Pattern.pattern = ['local', 'ssm']
Pattern.num_blocks = 2
local/Attention.window_size = 9
Attention.num_heads = 2
ssm/DecoderBlock.mixer = @Mamba2
Mamba2.head_size = 16
Mamba2.state_size = 16
ssm/DecoderBlock.mlp = @MixtureOfExperts
MixtureOfExperts.num_experts = 4
GatedMLP.intermediate_size = 64
DecoderBlock.dropout = 0.0
TextData.separate_documents = True
Trainer.precision = @MixedBFloat16
Trainer.optimizer = @SGD
Trainer.sequence_length = 64
"""


def test_compiled_blocks_of_all_kinds_train_like_eager_ones(tiny):
    torch._dynamo.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        compiled, eager = (
            torch.stack(steps(tiny(HYBRID, f"Trainer.compile = {compile}"), CUDA, 4)) for compile in (True, False)
        )
    # Fused operations round to bfloat16, by 2^-9, less often.
    assert relative_error(compiled, eager) < 2**-7


DIES = """
import os, runpy, signal, sys, time
from pathlib import Path
from ml.training import loop

def dies(state, *rest):
    if state.step == 5:
        while not Path(sys.argv[-1], "checkpoints/step_4/COMMITTED").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return take_step(state, *rest)

take_step = loop.train_step
loop.train_step = dies
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")
"""


def test_a_compiled_run_that_was_killed_resumes_bitwise(tiny_bindings, tmp_path):
    """A row fits one block of the attention kernel, whose backward pass would add several in any order."""
    settings = ["Trainer.compile = True", "Trainer.precision = @MixedBFloat16", "Trainer.log_every = 1"]
    config = tmp_path / "config.gin"
    config.write_text("\n".join([*tiny_bindings, *settings]))

    def begin(name, *program):
        command = [sys.executable, *program, "--gin_file", str(config), "--run_dir", str(tmp_path / name)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def end(*process):
        process = begin(*process)
        printed, _ = process.communicate(timeout=240)
        return process.returncode, printed

    # One after the other: kernels are chosen by their time, and the choice is kept for the next process.
    code, printed = end("undisturbed", "train.py")
    assert code == 0, printed
    code, printed = end("killed", "-c", DIES)
    assert code == -9, printed
    code, printed = end("killed", "train.py")
    assert (code, "step_4" in printed) == (0, True), printed
    metrics = [
        untimed([json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()])
        for name in ("undisturbed", "killed")
    ]
    assert len(metrics[0]) == 12
    assert metrics[0] == metrics[1]
