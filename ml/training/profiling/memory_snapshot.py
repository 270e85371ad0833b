"""Where the memory of a GPU goes, allocation by allocation."""

from pathlib import Path

import torch

from ml.config import configurable, require
from ml.training.errors import RunError
from ml.training.profiling.step_windows import Finish, StepWindow, whole_file


@configurable
class MemorySnapshot(StepWindow):
    """Records every allocation on the GPU in a few steps, in `profiles/memory_steps_A_to_B.pickle` of the run.

    https://docs.pytorch.org/memory_viz draws it. When memory runs out inside the window, what led to it is written.

    Args:
        first_step: The first step that is recorded.
        num_steps: How many are.
        max_entries: Allocations and frees that are kept, the latest ones.
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
