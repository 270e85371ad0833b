"""Generation with and without a cache: python benchmarks/generation.py [--num_tokens 1024] [--samplers]

Greedy decoding from a prompt of 4 tokens to 1,024 tokens in total. Without a cache, each token is a forward pass over
the whole text that computes only the logits of the last position. Both texts must be equal. Times are CPU seconds of
one thread, so that other load has little effect. --samplers measures sampling from a large vocabulary instead.
"""

import argparse
import time
from collections.abc import Callable

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
    "Mamba-2, 0.6M": ("models/mamba2.gin", f"{SIZES.format(128)}\ndecoder/Repeat.num_blocks = 4"),
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

        first, without, second = (processor_seconds(write, use_cache) for use_cache in (True, False, True))
        assert torch.equal(texts[True], texts[False]), f"{name}: the texts differ"
        cached = (first + second) / 2
        speed = num_tokens / cached
        print(f"{name:<16} {cached:>9.2f}s {without:>9.2f}s {without / cached:>7.1f}  {speed:,.0f}", flush=True)


def processor_seconds(call: Callable[[bool], None], argument: bool) -> float:
    begun = time.process_time()
    call(argument)
    return time.process_time() - begun


def compare_samplers(vocab_size: int) -> None:
    logits, uniform = 3 * torch.randn(1, vocab_size), torch.rand(1, dtype=torch.float64)
    print(f"{vocab_size} tokens: time relative to sorting all of them")
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
