"""The kernel that takes one token after another."""

from torch import Tensor

from ml.config import configurable
from ml.layers.recurrences.chunked import ChunkedRecurrence
from ml.layers.recurrences.delta_rule_reference import gated_delta_rule_reference
from ml.layers.recurrences.selective_scan import selective_scan_reference
from ml.layers.recurrences.state_space_duality import ssd_reference


@configurable
class ReferenceRecurrence(ChunkedRecurrence):
    """Recurrences one token after another in plain torch: a reference to compare other kernels with, on any device."""

    takes_chunk_size = False

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
        options = {"initial_state": initial_state, "document_starts": starts}
        return gated_delta_rule_reference(query, key, value, log_decay, beta, **options)

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
        return ssd_reference(x, dt, A, B, C, initial_state, starts)

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
        return selective_scan_reference(x, dt, A, B, C, initial_state, starts)
