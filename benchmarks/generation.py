"""Generation with a cache against without: python benchmarks/generation.py [--num_tokens 1024] [--samplers]

From a prompt of four tokens to a text of 1,024 in all, by the likeliest token. Without a cache the whole text goes
through the model for every token, and the logits of its last token alone are made; both ways must give the same text.
With --samplers, what choosing a token from a large vocabulary takes instead.
"""

import argparse

import torch
from timing import compare

import ml
from ml.models.generation import generate
from ml.models.sampling import Sampler

PROMPT = [1, 2, 3, 4]
SIZES = "LanguageModel.hidden_size = {0}\nLanguageModel.vocab_size = 256"
ATTENTION = "Attention.num_heads = 4\nAttention.num_kv_heads = 2"
MODELS = {
    "Llama, 0.9M": ("base.gin", ""),
    "Llama, 10M": (
        "models/llama.gin",
        f"{SIZES.format(384)}\n{ATTENTION}\ndecoder/Repeat.num_blocks = 6\nGatedMLP.intermediate_size = 1024",
    ),
    "Mamba-2, 0.6M": ("models/mamba2.gin", f"{SIZES.format(128)}\ndecoder/Repeat.num_blocks = 4"),
    "Mamba-2, 8M": ("models/mamba2.gin", f"{SIZES.format(384)}\ndecoder/Repeat.num_blocks = 8"),
    "hybrid, 1M": (
        "models/hybrid.gin",
        f"{SIZES.format(128)}\n{ATTENTION}\nPattern.num_blocks = 4\nGatedDeltaNet.num_heads = 4",
    ),
}
SAMPLERS = {
    "likeliest": Sampler(0.0),
    "temperature": Sampler(0.8),
    "top k 50": Sampler(top_k=50),
    "top p 0.9": Sampler(top_p=0.9),
    "min p 0.05": Sampler(min_p=0.05),
}


def compare_caches(num_tokens: int) -> None:
    print(f"{'':<16} {'with':>10} {'without':>10} {'ratio':>7}  tokens/s with")
    for name, (file, bindings) in MODELS.items():
        model, texts = ml.build(ml.load(file, bindings)).eval(), {}

        def write(use_cache: bool, model=model, texts=texts) -> None:
            made = generate(model, [PROMPT], num_tokens - len(PROMPT), Sampler(0.0), use_cache=use_cache)
            texts[use_cache] = torch.stack(list(made))

        result = compare(lambda: write(True), lambda: write(False), rounds=1, warmup=0)
        assert torch.equal(texts[True], texts[False]), f"{name}: the texts differ"
        speed = num_tokens / result.first
        print(f"{name:<16} {result.first:>9.2f}s {result.second:>9.2f}s {result.ratio:>7.1f}  {speed:,.0f}")


def compare_samplers(vocab_size: int) -> None:
    logits, uniform = 3 * torch.randn(1, vocab_size), torch.rand(1, dtype=torch.float64)
    print(f"{vocab_size} tokens: time over that of sorting all of them")
    for name, sampler in SAMPLERS.items():
        repeated = compare(
            lambda: [logits.sort(dim=-1, descending=True) for _ in range(20)],
            lambda: [sampler.draw(logits, uniform) for _ in range(20)],  # noqa: B023
            rounds=9,
        )
        print(f"{name:<16} {repeated.ratio:>7.2f}  {1000 * repeated.second / 20:.2f} ms")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--num_tokens", type=int, default=1024)
    parser.add_argument("--samplers", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.samplers:
        compare_samplers(128_000)
    else:
        compare_caches(arguments.num_tokens)


if __name__ == "__main__":
    main()
