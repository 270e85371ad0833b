"""Recurrences by mamba-ssm."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from ml.config import configurable
from ml.layers.recurrences.chunked import Rule
from ml.layers.recurrences.library import LibraryKernel

_CHUNK_SIZE = 256  # the library's


@configurable
class MambaSSM(LibraryKernel):
    """Recurrences by the CUDA and Triton kernels of mamba-ssm (Gu and Dao, 2023; Dao and Gu, 2024), extra `mamba`.

    State-space duality trains on CUDA in bfloat16 or float16. The selective scan is computed in float32, and neither
    separates documents nor has a gradient for a state that it begins or ends with (`Mesh.context`). The kernels are
    not part of the graph of a compiled block.
    """

    rules = frozenset((Rule.STATE_SPACE_DUALITY, Rule.SELECTIVE_SCAN))
    extra = "mamba"
    modules: ClassVar = {
        Rule.STATE_SPACE_DUALITY: "mamba_ssm.ops.triton.ssd_combined",
        Rule.SELECTIVE_SCAN: "mamba_ssm.ops.selective_scan_interface",
    }
    wide_rules = frozenset((Rule.SELECTIVE_SCAN,))

    def separates_documents(self, rule: Rule) -> bool:
        return rule is not Rule.SELECTIVE_SCAN

    @torch.compiler.disable
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
        if not self.takes(Rule.STATE_SPACE_DUALITY, x, dt, A, B, C, initial_state):
            return super().state_space_duality(x, dt, A, B, C, initial_state, starts, chunk_size)
        output, state = self.library(Rule.STATE_SPACE_DUALITY).mamba_chunk_scan_combined(
            x.contiguous(),
            dt.contiguous(),
            A,
            B.to(x.dtype).contiguous(),
            C.to(x.dtype).contiguous(),
            _CHUNK_SIZE,
            initial_states=initial_state,
            # Index of the document of each token; 0 is the one that the initial state belongs to.
            seq_idx=None if starts is None else starts.cumsum(1).to(torch.int32),
            return_final_states=True,
        )
        return output, state.float()

    @torch.compiler.disable
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
        if initial_state is not None or not self.takes(Rule.SELECTIVE_SCAN, x, dt, A, B, C):
            return super().selective_scan(x, dt, A, B, C, initial_state, starts)
        if starts is not None:
            raise ValueError("kernel = @MambaSSM does not separate documents; @ChunkedRecurrence does")
        x, dt, B, C = (part.float().mT.contiguous() for part in (x, dt, B, C))  # (B, F, T), (B, S, T)
        output, state = self.library(Rule.SELECTIVE_SCAN).selective_scan_fn(
            x, dt, A.float().contiguous(), B, C, return_last_state=True
        )
        return output.mT, _WithoutGradient.apply(state, x)


class _WithoutGradient(torch.autograd.Function):
    """A state whose gradient the library would ignore."""

    @staticmethod
    def forward(ctx: Any, state: Tensor, x: Tensor) -> Tensor:
        return state.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        raise ValueError("kernel = @MambaSSM: it has no gradient of the last state: take @ChunkedRecurrence")
