"""Runs that are resumed by their original command after the folder that they started from was removed."""

from pathlib import Path

from ml.config.comparison import statements

_STARTS = ("FromRun", "FromHuggingFace")


def start_without_source(run_dir: Path, source: Path) -> str | None:
    """Returns the kind of start of a run whose source was removed since; None if it is there, or that of no such run.

    Args:
        run_dir: Folder of the run.
        source: The folder that it started from.
    """
    from ml.runs.pinning import recorded_values
    from ml.training import RunFolder

    folder = RunFolder(run_dir)
    if source.exists() or not folder.is_begun:
        return None
    saved = folder.operative_config() or ""
    built = {one.text for one in statements(saved)}
    for kind in _STARTS:
        path = recorded_values(saved, kind).get("path")
        is_it = isinstance(path, str) and Path(path).resolve() == source.resolve()
        if is_it and f"Trainer.initial_weights = @{kind}" in built:
            return kind
    return None
