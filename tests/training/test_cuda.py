"""Tests that need a CUDA device; skipped without one."""

import pytest
import torch

from ml.training.step import train_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
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
