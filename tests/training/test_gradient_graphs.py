"""Gradients by CUDA graphs, against those of the same passes without."""

import pytest
import torch

import ml
from ml.config import ConfigError
from ml.distributed import MeshSizes
from ml.training import RunError
from ml.training.step import train_step

GRAPHS = "Trainer.cuda_graphs = True"
SETTINGS = [
    "DecoderBlock.dropout = 0.2",
    "Trainer.micro_batch_size = 4",
    "Trainer.sequence_length = 15",  # 60 targets, whose reciprocal is rounded
    "TextData.separate_documents = True",
    "Trainer.precision = @MixedBFloat16",
]


def results(trainer, count):
    """The losses and norms of the first steps, and the weights after them."""
    device = torch.device("cuda")
    dataset, state = trainer.open_data().training, trainer.start(device)
    measured = []
    for step in range(1, count + 1):
        torch.cuda.manual_seed(step)
        (batch,) = trainer.batches(dataset, step)
        parts = [*batch.split(3), *batch.split(1)[:2]] if step % 4 else batch.split(1)[:3]  # first ones of two shapes
        batches = [part.pinned() for part in parts]
        result = train_step(state, batches, trainer.precision, trainer.max_grad_norm, device)
        measured += [result.loss.clone(), result.grad_norm.clone()]
    return state, [*measured, *(parameter.detach() for parameter in state.trained().values())]


@pytest.mark.gpu
@pytest.mark.parametrize("compile", [False, True])
def test_steps_are_bitwise_those_without_graphs(tiny, compile):
    settings = [*SETTINGS, f"Trainer.compile = {compile}", "Trainer.batch_size = 4"]
    _, expected = results(tiny(*settings), 16)
    state, found = results(tiny(*settings, GRAPHS), 16)
    assert len(state.graphs._graphs) == 3
    assert all(map(torch.equal, found, expected))


@pytest.mark.gpu
def test_a_layer_that_synchronizes_ends_the_run(tiny):
    experts = ["DecoderBlock.mlp = @MixtureOfExperts", "MixtureOfExperts.num_experts = 2"]
    with pytest.raises(RunError, match=r"Trainer\.cuda_graphs = False"):
        results(tiny(*experts, "Trainer.micro_batch_size = 4", "MixtureOfExperts.grouped = False", GRAPHS), 3)


def test_a_cpu_is_refused(tiny):
    with pytest.raises(RunError, match=r"Trainer\.cuda_graphs needs a CUDA device"):
        tiny(GRAPHS).check_device(torch.device("cpu"))


def test_graphs_are_no_part_of_the_fingerprint():
    ours, theirs = (ml.load("recipes/tiny.gin", [f"Trainer.cuda_graphs = {value}"]) for value in (False, True))
    assert ours.fingerprint == theirs.fingerprint


def test_several_processes_are_refused(tiny):
    with pytest.raises(RunError, match=r"Trainer\.cuda_graphs is for a single process, not for 2"):
        tiny(GRAPHS).require_fit(MeshSizes(data_shard=2))


def test_a_layer_that_is_drawn_in_each_step_is_refused(tiny):
    drawn = ["DecoderBlock.mixer = @StochasticMixer", "StochasticMixer.mixers = {'a': @Attention, 'b': @GatedDeltaNet}"]
    with pytest.raises(ConfigError, match=r"cuda_graphs repeats one pass, and .*mixer is drawn in each step"):
        tiny(*drawn, GRAPHS)
