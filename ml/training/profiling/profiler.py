"""Profiles of a few steps: operations and their durations."""

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity

from ml.config import configurable, require
from ml.training.profiling.step_windows import Finish, StepWindow, whole_file


@configurable(neutral=True)
class Profiler(StepWindow):
    """Records the operations of a few steps with torch.profiler to `profiles/` of the run.

    `steps_A_to_B.json.gz` is a trace for https://ui.perfetto.dev or chrome://tracing, `steps_A_to_B.txt` a table of the
    operations that took longest. Recorded steps are slower.

    Args:
        run_steps: Number of steps of the run.
        first_step: First recorded step. The first steps of a run also warm up and compile.
        num_steps: Number of recorded steps.
        with_stack: Whether to record the Python stack of each operation.
        record_shapes: Whether to record the input shapes of each operation.
        profile_memory: Whether to record the allocations and frees of each operation.
        num_rows: Number of operations in the table.
    """

    def __init__(
        self,
        run_steps: int,
        *,
        first_step: int = 10,
        num_steps: int = 3,
        with_stack: bool = False,
        record_shapes: bool = False,
        profile_memory: bool = False,
        num_rows: int = 25,
    ):
        super().__init__(run_steps, first_step, num_steps)
        require(num_rows > 0, "num_rows", f"must be positive, not {num_rows}")
        self.with_stack = with_stack
        self.record_shapes = record_shapes
        self.profile_memory = profile_memory
        self.num_rows = num_rows

    def begin(self, device: torch.device) -> Finish:
        on_cuda = device.type == "cuda"
        profile = torch.profiler.profile(
            activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])],
            with_stack=self.with_stack,
            record_shapes=self.record_shapes,
            profile_memory=self.profile_memory,
        )
        profile.start()

        def finish(path: Path) -> None:
            if on_cuda:
                torch.cuda.synchronize(device)  # kernels of the last step may still be running
            profile.stop()
            order = "self_device_time_total" if on_cuda else "self_cpu_time_total"
            table = profile.key_averages().table(sort_by=order, row_limit=self.num_rows)
            with whole_file(path.with_suffix(".txt")) as temporary:
                temporary.write_text(table, encoding="utf-8")
            with whole_file(path.with_suffix(".json.gz")) as temporary:
                profile.export_chrome_trace(str(temporary))

        return finish
