"""Memory snapshots of a GPU: every allocation in a few steps."""

from pathlib import Path

import torch

from ml.config import configurable, require
from ml.training.errors import RunError
from ml.training.profiling.step_windows import Finish, StepWindow, whole_file


@configurable(neutral=True)
class MemorySnapshot(StepWindow):
    """Records every allocation on the GPU in a few steps to `profiles/memory_steps_A_to_B.pickle` of the run.

    https://docs.pytorch.org/memory_viz displays it. If memory runs out inside the window, the snapshot is written too.

    Args:
        run_steps: Number of steps of the run.
        first_step: First recorded step.
        num_steps: Number of recorded steps.
        max_entries: Maximum number of allocations and frees that are kept; the newest are kept.
    """

    prefix = "memory_"

    def __init__(self, run_steps: int, *, first_step: int = 1, num_steps: int = 3, max_entries: int = 100_000):
        super().__init__(run_steps, first_step, num_steps)
        require(max_entries > 0, "max_entries", f"must be positive, not {max_entries}")
        self.max_entries = max_entries

    def check(self) -> None:
        if not torch.cuda.is_available():
            raise RunError(
                "Trainer.memory_snapshot records the memory of a CUDA device, and this machine has none: set it to None"
            )

    def begin(self, device: torch.device) -> Finish:
        torch.cuda.memory._record_memory_history(max_entries=self.max_entries)

        def finish(path: Path) -> None:
            try:
                with whole_file(path.with_suffix(".pickle")) as temporary:
                    torch.cuda.memory._dump_snapshot(str(temporary))
            finally:
                torch.cuda.memory._record_memory_history(enabled=None)

        return finish
