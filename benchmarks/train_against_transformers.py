"""Training speed against transformers: the same Llama, tokens and optimizer, in one process, alternating.

A step is forward, loss, backward, clipping and fused AdamW. transformers uses scaled-dot-product attention. bfloat16 is
measured as autocast over float32 weights and with bfloat16 weights.

    python benchmarks/train_against_transformers.py
"""

import argparse
import contextlib
from collections.abc import Callable

import torch
from timing import compare
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import ml

HIDDEN, BLOCKS, HEADS, KV_HEADS, INTERMEDIATE = 384, 6, 6, 3, 1024
PRECISIONS = {
    "float32": (torch.float32, contextlib.nullcontext),
    "bfloat16 compute": (torch.float32, lambda: torch.autocast("cpu", dtype=torch.bfloat16)),
    "bfloat16 weights": (torch.bfloat16, contextlib.nullcontext),
}


def our_model(vocab_size: int) -> nn.Module:
    sizes = {
        "LanguageModel.vocab_size": vocab_size,
        "LanguageModel.hidden_size": HIDDEN,
        "decoder/Repeat.num_blocks": BLOCKS,
        "Attention.num_heads": HEADS,
        "Attention.num_kv_heads": KV_HEADS,
        "GatedMLP.intermediate_size": INTERMEDIATE,
    }
    return ml.build(ml.load("base.gin", [f"{key} = {value}" for key, value in sizes.items()]))


def their_model(vocab_size: int) -> nn.Module:
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=HIDDEN,
        num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        intermediate_size=INTERMEDIATE,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


def training_step(model: nn.Module, loss: Callable[[nn.Module], Tensor], context: Callable) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with context():
            value = loss(model)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--sequence_length", type=int, default=256)
    parser.add_argument("--compile", action="store_true", help="compile both models")
    arguments = parser.parse_args()
    shape = (arguments.batch_size, arguments.sequence_length)
    print(f"{'vocabulary':>10}  {'precision':<16}  {'Juniper':>14}  {'library':>8}  ratio (tokens/s)")
    for vocab_size in (256, 32_000):
        for name, (dtype, context) in PRECISIONS.items():
            ours, theirs = our_model(vocab_size).to(dtype), their_model(vocab_size).to(dtype)
            assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
            if arguments.compile:
                ours.loss, theirs.forward = torch.compile(ours.loss), torch.compile(theirs.forward)
            tokens = torch.randint(vocab_size, shape)
            our_step = training_step(ours, lambda m, t=tokens: m.loss(t, t).mean, context)
            their_step = training_step(theirs, lambda m, t=tokens: m(t, labels=t, use_cache=False).loss, context)
            result = compare(our_step, their_step, arguments.rounds, warmup=2)
            speeds = [tokens.numel() / taken for taken in (result.first, result.second)]
            print(f"{vocab_size:>10,}  {name:<16}  {speeds[0]:>14,.0f}  {speeds[1]:>8,.0f}  {result.ratio:.2f}")


if __name__ == "__main__":
    main()
