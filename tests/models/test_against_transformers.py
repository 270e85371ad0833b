"""Logits, loss and every gradient against the transformers library, with its weights, in float32."""

import pytest
import torch
from oracles import gpt2_like, gpt2_tensors, llama_like, llama_tensors, with_weights
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

# Both sides round in float32 with different summation orders. Errors of logits and gradients of order one are near
# 1e-6, and ten times that leaves room for the deepest sums.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}

LLAMAS = {
    "plain": {},
    "grouped keys": {"num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 48},
    "one key": {"num_attention_heads": 4, "num_key_value_heads": 1},
    "head size apart": {"hidden_size": 39, "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 22},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "tied": {"tie_word_embeddings": True, "num_key_value_heads": 2},
    "deep": {"num_hidden_layers": 5, "intermediate_size": 37, "rms_norm_eps": 1e-3},
    "another theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
}


def llama_oracle(seed: int, **changes) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    settings = {
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,  # large enough that attention is far from uniform
        "attn_implementation": "eager",
        **changes,
    }
    oracle = LlamaForCausalLM(LlamaConfig(**settings))
    with torch.no_grad():
        for name, parameter in oracle.named_parameters():
            if "norm" in name or "bias" in name:  # transformers initializes them to 1 and 0, which would hide a mistake
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return oracle


def batch(seed: int, vocab_size: int, shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, vocab_size, shape, generator=generator)
    targets = torch.randint(0, vocab_size, shape, generator=generator)
    targets[torch.rand(shape, generator=generator) < 0.2] = -100
    return tokens, targets


def assert_same(model, oracle, oracle_logits, targets, tokens, tensors):
    expected_loss = torch.nn.functional.cross_entropy(oracle_logits.flatten(0, 1), targets.flatten())
    expected_loss.backward()
    torch.testing.assert_close(model(tokens), oracle_logits, **CLOSE)
    sums = model.loss(tokens, targets)
    sums.mean.backward()
    torch.testing.assert_close(sums.mean, expected_loss, **CLOSE)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    expected = tensors(oracle, gradients=True)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("shape", [(2, 19), (3, 8)], ids=str)
@pytest.mark.parametrize("changes", LLAMAS.values(), ids=LLAMAS)
def test_llama_has_the_same_logits_loss_and_gradients(changes, shape):
    oracle = llama_oracle(sum(shape), **changes)
    model = with_weights(llama_like(oracle.config), llama_tensors(oracle, gradients=False))
    tokens, targets = batch(7, oracle.config.vocab_size, shape)
    assert_same(model, oracle, oracle(tokens).logits, targets, tokens, llama_tensors)


def test_llama_uses_the_positions_that_it_is_given():
    oracle = llama_oracle(3)
    model = with_weights(llama_like(oracle.config), llama_tensors(oracle, gradients=False))
    tokens, _ = batch(7, oracle.config.vocab_size, (2, 9))
    positions = torch.tensor([[0, 2, 4, 5, 6, 7, 11, 12, 30], [3, 4, 5, 6, 7, 8, 9, 10, 11]])
    expected = oracle(tokens, position_ids=positions).logits
    torch.testing.assert_close(model(tokens, positions), expected, **CLOSE)


@pytest.mark.parametrize("shape", [(2, 19), (3, 8)], ids=str)
def test_gpt2_has_the_same_logits_loss_and_gradients(shape):
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=61, n_embd=48, n_layer=3, n_head=3, n_positions=19, initializer_range=0.2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="eager",
    )  # fmt: skip
    oracle = GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in oracle.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    model = with_weights(gpt2_like(config), gpt2_tensors(oracle, gradients=False))
    tokens, targets = batch(7, config.vocab_size, shape)
    assert_same(model, oracle, oracle(tokens).logits, targets, tokens, gpt2_tensors)
