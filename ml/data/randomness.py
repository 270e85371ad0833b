"""Stateless random numbers: each is a function of a seed and a position.

The numbers of step n do not depend on earlier draws, so a resumed run has nothing to replay.
"""

import hashlib

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FEISTEL_ROUNDS = 8


def derive_seed(*key: int | str) -> int:
    """Returns a 63-bit seed derived from `key`, equal on every machine.

    Args:
        key: Base seed and the names or indices that identify a use, such as `(seed, "dropout", step)`.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def random_integers(seed: int, positions: np.ndarray, bound: int) -> np.ndarray:
    """Draws one uniform integer in [0, bound) for each position.

    Args:
        seed: Seed of the sequence of draws.
        positions: Positions in that sequence, any shape, non-negative.
        bound: Exclusive upper bound.

    Returns:
        int64 of the shape of `positions`.
    """
    return (_scramble(positions.astype(np.uint64), np.uint64(seed)) % np.uint64(bound)).astype(np.int64)


def permute(seed: int, positions: np.ndarray, size: int) -> np.ndarray:
    """Maps each position through a random permutation of range(size), in constant memory.

    A balanced Feistel network permutes a power of four; a result outside [0, size) is permuted again until it is inside
    ("cycle walking": Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002).

    Args:
        seed: Seed of the permutation.
        positions: Integers in [0, size), (N,).
        size: Size of the permuted range.

    Returns:
        int64 (N,).
    """
    half_bits = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    permuted = _feistel(seed, positions.astype(np.uint64), half_bits)
    while (outside := permuted >= np.uint64(size)).any():
        permuted[outside] = _feistel(seed, permuted[outside], half_bits)
    return permuted.astype(np.int64)


def _feistel(seed: int, values: np.ndarray, half_bits: np.uint64) -> np.ndarray:
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = values >> half_bits, values & mask
    for step in range(_FEISTEL_ROUNDS):
        key = np.uint64(derive_seed(seed, step))
        left, right = right, left ^ (_scramble(right, key) & mask)
    return (left << half_bits) | right


def _scramble(values: np.ndarray, key: np.uint64) -> np.ndarray:
    """Hashes each uint64: SplitMix64 (Steele, Lea, Flood, 2014), at that position of the sequence of `key`."""
    values = (values + np.uint64(1)) * _GOLDEN + key
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
