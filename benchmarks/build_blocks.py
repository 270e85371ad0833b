"""Overhead of gin: 10, 100 and 1,000 blocks on the meta device, built through gin and in plain Python.

The baseline builds the same tree by hand: the same modules with the same attributes, names and shapes, and parameters
with the same settings. It performs no lookups or checks. Times are CPU times, with Python's garbage collection enabled.

    python benchmarks/build_blocks.py
"""

import argparse
import time

import torch
import torch.nn.functional as F
from timing import compare
from torch import nn

import ml
from ml.layers.parameter import ParameterSettings
from ml.models import LanguageModel

HIDDEN, HEADS, INTERMEDIATE, VOCABULARY = 64, 4, 192, 256


def parameter(*shape: int, weight_decay: float | None = None) -> nn.Parameter:
    made = nn.Parameter(torch.empty(shape))
    made.settings = ParameterSettings(None, 1.0, weight_decay)
    return made


class PlainLinear(nn.Module):
    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.in_features, self.out_features, self.lr_scale = in_features, out_features, 1.0
        self.weight = parameter(out_features, in_features)
        self.bias = None


class PlainNorm(nn.Module):
    def __init__(self, size: int):
        super().__init__()
        self.size, self.epsilon, self.lr_scale = size, 1e-5, 1.0
        self.weight = parameter(size, weight_decay=0.0)


class PlainRotary(nn.Module):
    def __init__(self, head_size: int):
        super().__init__()
        self.head_size, self.theta = head_size, 10_000.0


class PlainAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_size = HEADS, HEADS, HIDDEN // HEADS
        self.window_size, self.softmax_scale, self.causal, self.dropout, self.lr_scale = None, None, True, 0.0, 1.0
        self.query, self.key, self.value, self.output = (PlainLinear(HIDDEN, HIDDEN) for _ in range(4))
        self.query_norm = self.key_norm = None
        self.rotary = PlainRotary(self.head_size)


class PlainMLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.lr_scale, self.activation = 1.0, F.silu
        self.gate, self.up = PlainLinear(HIDDEN, INTERMEDIATE), PlainLinear(HIDDEN, INTERMEDIATE)
        self.down = PlainLinear(INTERMEDIATE, HIDDEN)


class PlainBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm_position, self.residual_scale, self.dropout, self.lr_scale = "pre", 1.0, 0.0, 1.0
        self.mixer_norm, self.mixer = PlainNorm(HIDDEN), PlainAttention()
        self.mlp_norm, self.mlp = PlainNorm(HIDDEN), PlainMLP()


class PlainDecoder(nn.Module):
    def __init__(self, num_blocks: int):
        super().__init__()
        for index in range(num_blocks):
            setattr(self, f"block_{index}", PlainBlock())


def load(num_blocks: int) -> ml.Config:
    sizes = {
        "LanguageModel.hidden_size": HIDDEN,
        "decoder/Repeat.num_blocks": num_blocks,
        "Attention.num_heads": HEADS,
        "Attention.num_kv_heads": HEADS,
        "GatedMLP.intermediate_size": INTERMEDIATE,
    }
    return ml.load("base.gin", [f"{key} = {value}" for key, value in sizes.items()])


def measure(num_blocks: int, rounds: int) -> None:
    """Prints the CPU time of a build and of `ml.load`, relative to plain Python."""
    config = load(num_blocks)

    def through_gin() -> nn.Module:
        with torch.device("meta"):
            return config.build(LanguageModel)

    def plainly() -> nn.Module:
        with torch.device("meta"):
            return PlainDecoder(num_blocks)

    ours, plain = through_gin().decoder.state_dict(), plainly().state_dict()
    assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in plain.items()}
    built = compare(plainly, through_gin, rounds, clock=time.process_time)
    loaded = compare(plainly, lambda: load(num_blocks), rounds, clock=time.process_time)
    print(
        f"{num_blocks:>5} blocks: plain Python {built.first:.3f} s, through gin {built.second:.3f} s "
        f"({built.ratio:.2f}), ml.load with all checks {loaded.second:.3f} s ({loaded.ratio:.2f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_blocks", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    for num_blocks in arguments.num_blocks:
        measure(num_blocks, arguments.rounds)


if __name__ == "__main__":
    main()
