"""Randomness without state: every number is a function of a seed and of a place.

What is drawn at step n does not depend on what was drawn before it, so a resumed run has nothing to replay.
"""

import hashlib

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FEISTEL_ROUNDS = 8


def derive_seed(*place: int | str) -> int:
    """A 63-bit seed for `place`, such as `(seed, "dropout", step)`; equal on every machine."""
    digest = hashlib.blake2b(repr(place).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def random_integers(seed: int, places: np.ndarray, bound: int) -> np.ndarray:
    """One integer in [0, bound) for each place."""
    return (_scramble(places.astype(np.uint64), np.uint64(seed)) % np.uint64(bound)).astype(np.int64)


def permute(seed: int, places: np.ndarray, size: int) -> np.ndarray:
    """Where a random permutation of range(size) sends each place, in constant memory.

    A balanced Feistel network permutes a power of four; a place that lands outside of [0, size) is sent on until it is
    inside ("cycle walking": Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002).
    """
    half_bits = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    permuted = _feistel(seed, places.astype(np.uint64), half_bits)
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
    """Hashes each uint64 on its own: SplitMix64 (Steele, Lea, Flood, 2014) at that place of the sequence of `key`."""
    values = (values + np.uint64(1)) * _GOLDEN + key
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
