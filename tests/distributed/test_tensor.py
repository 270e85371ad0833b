"""Tensor and sequence parallel models compute what one process does."""

import copy
from functools import partial

import pytest
import torch
from processes import run_ranks
from tensor_models import (
    assert_same_as_one_process,
    batch_of,
    divided,
    gradients_of,
    small_model,
    tensor_mesh,
)
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.debug import CommDebugMode

from ml.blocks import DecoderBlock, Repeat
from ml.distributed import MeshError
from ml.distributed.rules.embeddings import vocabulary_misfit
from ml.distributed.tensor import obstacle_to_sequence, tensor_misfits, tensor_parallel
from ml.layers import MLP, Attention
from ml.layers.loss import Teacher
from ml.layers.vision import PatchEmbedding
from ml.models import LanguageModel, materialize
from ml.models.generation import generate
from ml.models.sampling import Sampler
from ml.models.vision_encoder import VisionEncoder
from ml.models.vision_language_model import VisionLanguageModel

VOCABULARY = 61  # of the model that reads images

NORMAL_BIAS = ["Linear.bias = True", "Linear.bias_initialization = @normal"]
CASES = {
    "plain": [],
    "tied": ["LanguageModel.tie_word_embeddings = True"],
    "biases": NORMAL_BIAS,
    "layer norms": ["DecoderBlock.normalization = @LayerNorm", "LayerNorm.bias_initialization = @normal"],
    "MLP": ["DecoderBlock.mlp = @MLP", *NORMAL_BIAS],
    "LoRA": ["Linear.apply_peft = @LoRA", "LoRA.B_initialization = @normal", *NORMAL_BIAS],
    "only LoRA trained": [
        "Linear.apply_peft = @LoRA",
        "LoRA.B_initialization = @normal",
        "Parameter.lr_scale = 0.0",
        "adapter/Parameter.lr_scale = 1.0",
    ],
    "query and key norm, gate, sinks": [
        "Attention.query_norm = @RMSNorm",
        "Attention.key_norm = @LayerNorm",
        "Attention.gated = True",
        "Attention.attention_sinks = True",
    ],
    "fused projections": ["Projections.fused = True", *NORMAL_BIAS],
    "window, soft cap of scores": ["Attention.window_size = 5", "Attention.soft_cap = 3.0"],
    "z-loss, soft cap of logits": ["LanguageModelHead.z_loss = 0.01", "LanguageModelHead.logit_soft_cap = 1.0"],
    "chunked loss": ["LanguageModelHead.loss_chunk_size = 10", "LanguageModel.tie_word_embeddings = True"],
    "uneven vocabulary and width": ["LanguageModel.vocab_size = 257", "GatedMLP.intermediate_size = 37"],
    "uneven, tied": ["LanguageModel.vocab_size = 257", "LanguageModel.tie_word_embeddings = True"],
    "norms after": ["DecoderBlock.norm_position = 'post'"],
    "norms of outputs": ["DecoderBlock.mixer_output_norm = @RMSNorm", "DecoderBlock.mlp_output_norm = @RMSNorm"],
    "learned positions, scale": ["Embeddings.position = @PositionEmbedding", "Embeddings.scale = 5.0"],
    "shared blocks": ["Repeat.shared = True", *NORMAL_BIAS],
    "one of two mixers": [
        "DecoderBlock.mixer = @StochasticMixer",
        "StochasticMixer.mixers = {'whole': @Attention, 'window': @window/Attention}",
        "window/Attention.window_size = 4",
    ],
    "checkpointing": ["DecoderBlock.activation_checkpointing = @ActivationCheckpointing", *NORMAL_BIAS],
    "selective checkpointing": ["DecoderBlock.activation_checkpointing = @SelectiveActivationCheckpointing"],
}


def checked(name, check, *args, **kwargs):
    try:
        return check(*args, **kwargs)
    except Exception as error:
        raise AssertionError(f"{name} {kwargs}") from error


def every_case(world):
    for name, bindings in CASES.items():
        model = small_model(bindings)
        batch = batch_of(model.vocab_size)
        for sequence in (False, True):
            checked(name, assert_same_as_one_process, world, model, batch, sequence=sequence)


def test_loss_and_gradients_on_two_ranks():
    run_ranks(2, every_case)


def further_passes(world):
    plain = small_model()
    odd = batch_of(num_tokens=15)  # not divisible: the stream of this pass is whole
    for name, batch in (("documents", batch_of(documents=True)), ("15 tokens", odd)):
        for sequence in (False, True):
            checked(name, assert_same_as_one_process, world, plain, batch, sequence=sequence)
    for sequence in (False, True):
        of_teacher = torch.randn(3, 16, 257, generator=torch.Generator().manual_seed(1))
        for chunk in (None, 10):
            bindings = ["LanguageModel.vocab_size = 257", f"LanguageModelHead.loss_chunk_size = {chunk}"]
            checked(
                "teacher",
                assert_same_as_one_process,
                world,
                small_model([*bindings, "LanguageModelHead.z_loss = 0.01"]),
                batch_of(257),
                sequence=sequence,
                teacher=Teacher(of_teacher, 0.3, 2.0),
            )
    several = ["LanguageModel.multi_token = @MultiTokenPrediction", "MultiTokenPrediction.num_depths = 2"]
    checked("multi-token", assert_same_as_one_process, world, small_model(several), batch_of(), sequence=False)


def test_documents_lengths_teachers_and_further_tokens():
    run_ranks(2, further_passes)


def images_bfloat16_and_float8(world):
    with torch.device("meta"):
        model = vision_model()
    batch = batch_of(VOCABULARY - 1)
    tokens = batch.tokens.clone()
    tokens[0, 2:4] = tokens[2, 5:7] = VOCABULARY - 1  # an image has two patches
    images = torch.randn(2, 3, 2, 4, generator=torch.Generator().manual_seed(3))
    assert obstacle_to_sequence(model) is not None
    assert_same_as_one_process(world, model, batch._replace(tokens=tokens), sequence=False, images=images)

    plain = ["LanguageModelHead.z_loss = 0.01", "GatedMLP.intermediate_size = 64"]
    for rounding, autocasts in (([], True), (["mlp/Linear.kernel = @Float8"], False)):
        batch, model = batch_of(), small_model([*plain, *rounding])
        one, many = materialize(copy.deepcopy(model), "cpu", 3), divided(model, world, sequence=True)
        _, exact = gradients_of(materialize(small_model(plain), "cpu", 3), batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocasts):
            _, rounded = gradients_of(one, batch)
            _, found = gradients_of(many, batch)
        for name, gradient in exact.items():
            error, usual = (found[name].full_tensor() - gradient).norm(), (rounded[name] - gradient).norm()
            assert error < 2 * usual, name  # rounded in other places, but as coarsely


def vision_model():
    """A language model of width 32 that reads images of two patches."""
    block = partial(DecoderBlock, mlp=partial(MLP, intermediate_size=24))
    of_text, of_patches = partial(Attention, num_heads=4), partial(Attention, num_heads=2, causal=False, rotary=None)
    vision = partial(
        VisionEncoder,
        hidden_size=16,
        patches=partial(PatchEmbedding, image_size=(2, 4), patch_size=2),
        encoder=partial(Repeat, block=partial(block, mixer=of_patches), num_blocks=1),
    )
    decoder = partial(Repeat, block=partial(block, mixer=of_text), num_blocks=2)
    text = partial(LanguageModel, vocab_size=VOCABULARY, hidden_size=32, decoder=decoder)
    return VisionLanguageModel(image_token_id=VOCABULARY - 1, language_model=text, vision=vision)


def test_images_bfloat16_and_float8():
    run_ranks(2, images_bfloat16_and_float8)


def four_ranks(world):
    for bindings in ([], ["LanguageModel.vocab_size = 259", "GatedMLP.intermediate_size = 38"]):
        model, batch = small_model(["Attention.num_kv_heads = 4", *NORMAL_BIAS, *bindings]), batch_of()
        for sequence in (False, True):
            checked("4 ranks", assert_same_as_one_process, world, model, batch, sequence=sequence)


def test_loss_and_gradients_on_four_ranks():
    run_ranks(4, four_ranks)


def logits_and_generation(world):
    model = small_model(["LanguageModel.vocab_size = 257"])
    one = materialize(copy.deepcopy(model), "cpu", 3).eval()
    described, flops = str(one), [layer.training_flops_per_token(16) for layer in one.modules() if layer is not one]
    many = divided(model, world, sequence=True).eval()
    tokens = batch_of(257).tokens
    tokens = torch.as_tensor(tokens)
    for options in ({}, {"num_logits": 1}):
        torch.testing.assert_close(many(tokens, **options), one(tokens, **options), rtol=1e-5, atol=1e-5)
    many(tokens).square().sum().backward()
    one(tokens).square().sum().backward()
    found = many.head.weight.grad.full_tensor()
    torch.testing.assert_close(found, one.head.weight.grad, rtol=1e-4, atol=1e-4 * one.head.weight.grad.abs().max())
    prompts = [tokens[0, :5].tolist(), tokens[1, :9].tolist()]
    for use_cache in (True, False):
        drawn = [
            list(generate(model, prompts, 6, Sampler(), use_cache=use_cache, shared=torch.clone))
            for model in (one, many)
        ]
        assert torch.equal(torch.stack(drawn[0]), torch.stack(drawn[1]))
    # Outside of a pass the layers are those of the whole model.
    assert str(many) == described
    assert [layer.training_flops_per_token(16) for layer in many.modules() if layer is not many] == flops
    assert many.state_dict().keys() == one.state_dict().keys()


def test_logits_and_what_the_layers_declare():
    run_ranks(2, logits_and_generation)


def gradients_with_dropout(world):
    bindings = ["DecoderBlock.dropout = 0.3", "Embeddings.dropout = 0.3", "Attention.dropout = 0.3"]
    model = small_model([*bindings, "Linear.apply_peft = @LoRA", "LoRA.dropout = 0.3"])
    found = {}
    for sequence in (False, True):
        torch.manual_seed(5)
        _, gradients = gradients_of(divided(model, world, sequence=sequence).train(), batch_of())
        replicated = {name: g for name, g in gradients.items() if g.placements == (Replicate(),)}
        found[sequence] = {name: g.to_local().numpy() for name, g in replicated.items()}
    return found


def test_replicated_weights_stay_equal_with_dropout():
    first, second = run_ranks(2, gradients_with_dropout)
    for sequence in (False, True):
        assert first[sequence].keys() == second[sequence].keys() > set()
        for name, gradient in first[sequence].items():
            assert (gradient == second[sequence][name]).all(), name


def collectives_of(world):
    counts = {}
    for sequence in (False, True):
        for num_blocks in (1, 2):
            model = divided(small_model([f"decoder/Repeat.num_blocks = {num_blocks}"]), world, sequence=sequence)
            batch = batch_of()
            with CommDebugMode() as mode:
                model.loss(**batch.inputs).total.backward()
            counts[sequence, num_blocks] = {str(op).split(".")[-1]: n for op, n in mode.get_comm_counts().items()}
    return counts


def test_number_of_collectives():
    counts, others = run_ranks(2, collectives_of)
    assert counts == others
    names = {name for count in counts.values() for name in count}
    per_block = {
        sequence: {name: counts[sequence, 2].get(name, 0) - counts[sequence, 1].get(name, 0) for name in names}
        for sequence in (False, True)
    }
    # Attention and MLP: a sum of the output, and one of the gradient of the input.
    assert {name: n for name, n in per_block[False].items() if n} == {"all_reduce": 4}
    # In the place of each sum a gather and a reduce-scatter; the gradients of the two norms are sums over the ranks.
    expected = {"all_gather_into_tensor": 4, "reduce_scatter_tensor": 4, "all_reduce": 2}
    assert {name: n for name, n in per_block[True].items() if n} == expected
    # Embedding, gradient of the head's input, and maximum and sums of the cross entropy.
    assert counts[False, 1]["all_reduce"] - 4 == 4


PLACE = "(in decoder.block_0.mixer and 1 more)"


@pytest.mark.parametrize(
    ("bindings", "size", "problems"),
    [
        ([], 4, [f"Attention.num_kv_heads (2) is not divisible by Mesh.tensor (4) {PLACE}"]),
        ([], 3, [f"Attention.num_heads (4) is not divisible by Mesh.tensor (3) {PLACE}"]),
        (
            ["block_1/Attention.num_kv_heads = 1"],
            2,
            ["Attention.num_kv_heads (1) is not divisible by Mesh.tensor (2) (in decoder.block_1.mixer)"],
        ),
        (["LanguageModel.vocab_size = 257", "GatedMLP.intermediate_size = 37"], 2, []),
        (["Attention.num_kv_heads = 1"], 1, []),
        (
            ["GatedMLP.intermediate_size = 37", "Linear.apply_peft = @LoRA", "LoRA.dropout = 0.1"],
            2,
            [
                "GatedMLP.down: LoRA.dropout (0.1) needs inputs (37) whose number is divisible by Mesh.tensor (2) "
                "(in decoder.block_0.mlp and 1 more)"
            ],
        ),
    ],
)
def test_what_does_not_fit_is_named(bindings, size, problems):
    assert tensor_misfits(small_model(bindings), size) == problems


@pytest.mark.parametrize(("vocab_size", "size", "fits"), [(9, 4, False), (10, 4, True), (8, 4, True), (3, 4, False)])
def test_every_rank_needs_a_token(vocab_size, size, fits):
    problem = vocabulary_misfit("vocab_size", vocab_size, size)
    parts = torch.arange(vocab_size).chunk(size)  # as `Shard` divides
    assert fits == (len(parts) == size) == (problem is None)


def test_a_shift_along_time_refuses_a_divided_stream():
    model = small_model(["LanguageModel.multi_token = @MultiTokenPrediction"])
    assert obstacle_to_sequence(small_model()) is None
    assert "MultiTokenPrediction" in obstacle_to_sequence(model)


def refused(world):
    model = small_model(["Attention.num_kv_heads = 1"])
    with pytest.raises(MeshError, match=r"num_kv_heads \(1\)"):
        tensor_parallel(model, tensor_mesh(world), sequence=False)
    several = small_model(["LanguageModel.multi_token = @MultiTokenPrediction"])
    with pytest.raises(MeshError, match="multi_token"):
        tensor_parallel(several, tensor_mesh(world), sequence=True)


def test_refusals():
    run_ranks(2, refused)
