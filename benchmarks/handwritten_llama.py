"""A Llama in plain torch, as nanoGPT writes a model: the baseline without a framework."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Norm(nn.Module):
    """RMSNorm by its formula, which is faster than `F.rms_norm` on a CPU."""

    def __init__(self, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)).type_as(x) * self.weight.type_as(x)


class Block(nn.Module):
    """Attention with grouped heads and a gated MLP, each after a norm."""

    def __init__(self, hidden: int, heads: int, kv_heads: int, intermediate: int):
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads
        kv_size = hidden // heads * kv_heads
        self.attention_norm, self.mlp_norm = Norm(hidden), Norm(hidden)
        self.query, self.key, self.value, self.output = (
            nn.Linear(hidden, size, bias=False) for size in (hidden, kv_size, kv_size, hidden)
        )
        self.gate, self.up = (nn.Linear(hidden, intermediate, bias=False) for _ in range(2))
        self.down = nn.Linear(intermediate, hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        normed = self.attention_norm(x)
        query = rotate(self.query(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2), cos, sin)
        key = rotate(self.key(normed).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2), cos, sin)
        value = self.value(normed).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        x = x + self.output(mixed.transpose(1, 2).flatten(2))
        normed = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed))


class Llama(nn.Module):
    """Logits (B, T, V) or the mean loss."""

    def __init__(self, vocab: int, hidden: int, blocks: int, heads: int, kv_heads: int, intermediate: int, length: int):
        super().__init__()
        self.embedding = nn.Embedding(vocab, hidden)
        self.blocks = nn.ModuleList(Block(hidden, heads, kv_heads, intermediate) for _ in range(blocks))
        self.norm = Norm(hidden)
        self.head = nn.Linear(hidden, vocab, bias=False)
        size = hidden // heads
        angles = torch.arange(length)[:, None] / 10_000.0 ** (torch.arange(0, size, 2) / size)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.embedding(tokens)
        cos, sin = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x, cos, sin)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the halves of each head (B, N, T, D) by the angles (T, D / 2)."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos.type_as(x), sin.type_as(x)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
