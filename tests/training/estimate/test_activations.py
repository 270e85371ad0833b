"""Activations of a plan against the memory that a forward pass on the CPU keeps, as torch's allocator counts it."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from ml.api import build_trainer, load
from ml.distributed import Layout, MeshSizes
from ml.training.estimate import plan
from ml.training.estimate.tracing import batch_of

CPU = torch.device("cpu")
# Three equal blocks, of which the plan traces two.
MODEL = "decoder/Repeat.num_blocks = 3\nCluster.device = 'cpu'\n"
GENERATOR_STATE = torch.get_rng_state().nbytes  # which a recomputed block keeps, outside of autograd


def kept_by_forward_pass(trainer):
    """Returns the bytes that a forward pass of a micro-batch allocates and does not free."""
    state = trainer.start(CPU)
    inputs = batch_of(trainer, Layout()).inputs
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled, trainer.precision.autocast(CPU):
        losses = state.model.loss(**inputs)
    assert losses.total.requires_grad
    events = profiled.profiler.kineto_results.events()
    return sum(event.nbytes() for event in events if event.name() == "[memory]")


@pytest.mark.parametrize(
    ("bindings", "num_recomputed"),
    [
        ("", 0),
        ("DecoderBlock.activation_checkpointing = @ActivationCheckpointing", 3),
        ("DecoderBlock.activation_checkpointing = @SelectiveActivationCheckpointing", 3),
        ("Trainer.precision = @MixedBFloat16", 0),
        ("Trainer.precision = @PureBFloat16", 0),
        ("LanguageModelHead.loss_chunk_size = 32", 0),
        ("Trainer.micro_batch_size = 2", 0),
        ("LanguageModel.tie_word_embeddings = True", 0),
        ("TextData.separate_documents = True", 0),
        ("block_1/Attention.window_size = 16", 0),
        ("DecoderBlock.mixer = @Mamba2", 0),
    ],
)
def test_activations_are_those_of_a_forward_pass(bindings, num_recomputed):
    trainer = build_trainer(load("recipes/tiny.gin", [MODEL + bindings], allow_unused_bindings=True))
    planned = plan(trainer, MeshSizes(), trainer.cluster).memory.activations
    assert planned + num_recomputed * GENERATOR_STATE == kept_by_forward_pass(trainer)


def test_activations_of_experts_are_those_of_an_even_load():
    bindings = "block_2/DecoderBlock.mlp = @MixtureOfExperts"
    trainer = build_trainer(load("recipes/tiny.gin", [MODEL + bindings], allow_unused_bindings=True))
    planned = plan(trainer, MeshSizes(), trainer.cluster).memory.activations
    # The load of the experts is not even in the pass; only small tensors of counts depend on it.
    assert planned == pytest.approx(kept_by_forward_pass(trainer), abs=64)
