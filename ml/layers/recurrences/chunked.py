"""The contract of recurrence kernels, and the kernel in plain torch."""

import enum

import torch
from torch import Tensor

from ml.config import configurable
from ml.layers.recurrences.delta_rule import gated_delta_rule
from ml.layers.recurrences.selective_scan import selective_scan
from ml.layers.recurrences.state_space_duality import ssd_chunked, ssd_reference


class Rule(enum.Enum):
    """Rule by which a state changes from token to token; the value is its name in messages."""

    GATED_DELTA_RULE = "the gated delta rule"
    STATE_SPACE_DUALITY = "state-space duality"
    SELECTIVE_SCAN = "the selective scan"


@configurable
class ChunkedRecurrence:
    """Recurrences in plain torch, one chunk of tokens at a time, on any device and in any dtype.

    To add a kernel, derive from this class, override the methods of some rules, and declare them in `rules`. A kernel
    has no weights. Every method returns the last state too, and takes its gradient.

    Attributes:
        rules: The rules that the kernel computes.
        takes_chunk_size: Whether the `chunk_size` of a mixer has an effect.
    """

    rules: frozenset[Rule] = frozenset(Rule)
    takes_chunk_size = True

    def gated_delta_rule(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        log_decay: Tensor,
        beta: Tensor,
        initial_state: Tensor | None,
        starts: Tensor | None,
        chunk_size: int,
    ) -> tuple[Tensor, Tensor]:
        """Computes `gated_delta_rule_reference`.

        Args:
            query: (B, T, N, D).
            key: (B, T, N, D).
            value: (B, T, N, V).
            log_decay: (B, T, N), or (B, T, N, D) for a decay of each channel.
            beta: (B, T, N).
            initial_state: (B, N, D, V); None is 0.
            starts: (B, T), true for the first token of a document; None where documents are not separated.
            chunk_size: Number of tokens that are computed together.

        Returns:
            The outputs (B, T, N, V) in the dtype of `value`, and the last state, at least float32.
        """
        return gated_delta_rule(
            query,
            key,
            value,
            log_decay,
            beta,
            initial_state=initial_state,
            document_starts=starts,
            chunk_size=chunk_size,
        )

    def state_space_duality(
        self,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        initial_state: Tensor | None,
        starts: Tensor | None,
        chunk_size: int,
    ) -> tuple[Tensor, Tensor]:
        """Computes `ssd_reference`.

        Args:
            x: (B, T, N, P).
            dt: (B, T, N), at least float32.
            A: (N), negative.
            B: (B, T, G, S); N / G adjacent heads share it.
            C: (B, T, G, S).
            initial_state: (B, N, P, S); None is 0.
            starts: (B, T), true for the first token of a document; None where documents are not separated.
            chunk_size: Number of tokens that are computed together.

        Returns:
            The outputs (B, T, N, P), and the last state, at least float32.
        """
        if x.shape[1] == 1:  # a token while decoding: there is nothing to compute at once
            return ssd_reference(x, dt, A, B, C, initial_state, starts)
        return ssd_chunked(x, dt, A, B, C, initial_state, starts, chunk_size=chunk_size)

    def selective_scan(
        self,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        initial_state: Tensor | None,
        starts: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Computes `selective_scan_reference`.

        Args:
            x: (B, T, F).
            dt: (B, T, F), at least float32.
            A: (F, S), negative.
            B: (B, T, S).
            C: (B, T, S).
            initial_state: (B, F, S); None is 0.
            starts: (B, T), true for the first token of a document; None where documents are not separated.

        Returns:
            The outputs (B, T, F) and the last state, at least float32.
        """
        return selective_scan(x, dt, A, B, C, initial_state, starts)

    def separates_documents(self, rule: Rule) -> bool:
        """Returns whether a rule takes `starts`."""
        return True

    def obstacle(self, rule: Rule, device_type: str, dtype: torch.dtype) -> str | None:
        """Returns why the kernel cannot train a layer, as a sentence about it; None if it can.

        Args:
            rule: The rule of the layer.
            device_type: Type of the device, such as "cuda".
            dtype: The dtype of matrix products.
        """
        return None

    def problem(self, rule: Rule, device_type: str, dtype: torch.dtype) -> str | None:
        """Returns the obstacle as a message, with what to do about it; None where there is none."""
        obstacle = self.obstacle(rule, device_type, dtype)
        return None if obstacle is None else f"= @{type(self).__name__}: {obstacle}, or take @ChunkedRecurrence"
