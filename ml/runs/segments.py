"""The segments of a run: its configurations, each with the step after which it is in force.

A run that was never extended has one segment and no folder for it. `segments/step_N` holds the configuration in force
after step N, from `segments/step_0` on; the files beside `segments` are the newest.
"""

import shutil

from ml.config import Config, compare
from ml.files import write_atomically
from ml.run_files import SEGMENTS, segment_folders
from ml.training import RunFolder


def current_segment(folder: RunFolder) -> int:
    """Returns the step after which the configuration of a run is in force, 0 for the first segment."""
    operative = folder.operative_config()
    fitting = [
        step
        for step, path in segment_folders(folder.path).items()
        if operative is not None and not compare(RunFolder(path).operative_config() or "", operative)
    ]
    return max(fitting, default=0)


def write_segment(folder: RunFolder, step: int, config: Config, *, is_new: bool) -> None:
    """Writes the configuration of the segment after `step`, and removes later ones, which never came into force.

    Args:
        folder: The run.
        step: The step after which the configuration is in force.
        config: The configuration.
        is_new: Whether the segment begins now; the configuration so far is kept then as the first segment.
    """
    known = segment_folders(folder.path)
    for later in (path for start, path in known.items() if start > step):
        shutil.rmtree(later)
    if not known and not is_new:
        return
    if not known:
        first = RunFolder(folder.path / SEGMENTS / "step_0")
        first.path.mkdir(parents=True, exist_ok=True)
        for name in ("config.gin", "provenance.json", "operative_config.gin"):  # the last one makes it a segment
            write_atomically(first.path / name, (folder.path / name).read_text("utf-8"))
    segment = RunFolder(folder.path / SEGMENTS / f"step_{step}")
    segment.path.mkdir(parents=True, exist_ok=True)
    segment.write_config(config.text, config.operative, config.provenance())
