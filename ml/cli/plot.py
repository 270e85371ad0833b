"""Draw runs side by side: loss, learning rate, throughput, and any other metric."""

import argparse
import sys
from pathlib import Path

from ml.cli.path_argument import to_path
from ml.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=to_path, metavar="RUN", help="the folder of a run, or a folder of runs")
    parser.add_argument("--output", type=to_path, default=Path("runs.png"), help="the picture (default runs.png)")
    parser.add_argument("--metric", action="append", default=[], help="one more panel, as grad_norm; repeatable")
    parser.add_argument("--x", choices=("tokens", "step", "seconds"), default="tokens", help="(default tokens)")
    parser.add_argument(
        "--smoothing", type=int, metavar="N", help="logged steps in a mean, 1 for none (default: a twentieth of them)"
    )
    parser.add_argument(
        "--log", action="append", default=[], metavar="AXIS", help="a logarithmic axis: x, or a metric; repeatable"
    )


def run(arguments: argparse.Namespace) -> None:
    """Writes the figure and reports its path."""
    from ml.plots.figure import USUAL_METRICS, Curve, Style, check_format, draw, save
    from ml.plots.labels import label_runs
    from ml.plots.series import read_metrics, require_metric

    check_format(arguments.output)
    if arguments.smoothing is not None and arguments.smoothing < 1:
        raise UserError(f"--smoothing must be positive, not {arguments.smoothing}")
    folders = [folder for given in arguments.runs for folder in _runs_in(given)]
    runs = [read_metrics(folder) for folder in folders]
    for name in arguments.metric:
        require_metric(name, runs)
    panels = ["x", *USUAL_METRICS, *arguments.metric]
    for axis in arguments.log:
        if axis not in panels:
            raise UserError(f"--log={axis}: there is no such axis; there are {', '.join(panels)}")
    for metrics in runs:
        if metrics.warning:
            print(metrics.warning, file=sys.stderr)
    curves = [Curve(label, metrics) for label, metrics in zip(label_runs(folders), runs, strict=True)]
    style = Style(arguments.x, tuple(arguments.metric), arguments.smoothing, frozenset(arguments.log))
    save(draw(curves, style), arguments.output)
    print(arguments.output)


def _runs_in(folder: Path) -> list[Path]:
    """The folder itself, or the runs in it that have measured something where it is a folder of runs."""
    if (folder / "operative_config.gin").exists() or not folder.is_dir():
        return [folder]
    within = [path.parent for path in sorted(folder.glob("*/operative_config.gin"))]
    return [run for run in within if (run / "metrics.jsonl").exists()] or within or [folder]
