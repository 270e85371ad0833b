"""Runs that are resumed by their original command after the folder that they started from was removed."""

from pathlib import Path

from ml.config.comparison import statements

_STARTS = ("FromRun", "FromHuggingFace")


def start_without_source(run_dir: Path, source: Path) -> str | None:
    """Returns the kind of start of a run whose source was removed since; None if it is there, or no run has begun.

    Args:
        run_dir: Folder of the run.
        source: The folder that the command names as its source.
    """
    from ml.training import RunFolder

    folder = RunFolder(run_dir)
    if source.exists() or not folder.is_begun:
        return None
    saved = folder.operative_config() or ""
    built = {one.text for one in statements(saved)}
    return next((kind for kind in _STARTS if f"Trainer.initial_weights = @{kind}" in built), None)
