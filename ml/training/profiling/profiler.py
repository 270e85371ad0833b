"""What some steps compute, and how long each operation takes."""

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity

from ml.config import configurable, require
from ml.training.profiling.step_windows import Finish, StepWindow, whole_file


@configurable
class Profiler(StepWindow):
    """Records the operations of a few steps with torch.profiler, in `profiles/` of the run.

    `steps_A_to_B.json.gz` is a trace for https://ui.perfetto.dev or chrome://tracing, `steps_A_to_B.txt` a table of the
    operations that took longest. Steps are slower while they are recorded.

    Args:
        first_step: The first step that is recorded. The first ones of a run also warm up and compile.
        num_steps: How many are.
        with_stack: Whether the lines of Python that called each operation are recorded.
        record_shapes: Whether the shapes of what each operation takes are.
        profile_memory: Whether what each operation allocates and frees is.
        num_rows: Operations in the table.
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
