"""Metric names are the same in files, plots and trackers."""

import json

from ml.metric_names import scalars
from ml.plots.series import parse_metrics


def test_plots_and_trackers_use_the_same_metric_names(tmp_path):
    record = {
        "step": 3, "loss": 2.5, "skipped": None, "note": "text", "is_new": True, "norm": float("inf"),
        "routers": {"decoder.block_0.mlp.router": {"idle": 0.5, "busiest": {"share": 1}}},
    }  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    (plotted,) = parse_metrics(tmp_path / "metrics.jsonl").records
    tracked = scalars(record)
    assert plotted == {"step": 3, **tracked}
    assert tracked == {
        "loss": 2.5,
        "routers/decoder.block_0.mlp.router/idle": 0.5,
        "routers/decoder.block_0.mlp.router/busiest/share": 1,
    }
