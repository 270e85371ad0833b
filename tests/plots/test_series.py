"""Series of points from metrics.jsonl."""

import json
import math

import numpy as np
import pytest

from ml.errors import UserError
from ml.plots.series import parse_metrics, read_metrics, require_metric, series, smooth


@pytest.fixture
def run(tmp_path):
    """Writes a run with these lines of metrics; returns its folder."""

    def write(*lines):
        (tmp_path / "operative_config.gin").touch()
        (tmp_path / "metrics.jsonl").write_bytes(b"".join(lines))
        return tmp_path

    return write


def line(step, **values):
    return json.dumps({"step": step, "tokens": 100 * step, **values}).encode() + b"\n"


def test_a_series_has_the_points_with_values_on_both_axes(run):
    metrics = read_metrics(run(line(1, loss=5.0), line(2, loss=4.0, validation_loss=4.5), line(3, validation_loss=4)))
    points = series(metrics, "loss", "tokens")
    assert points.x.tolist() == [100.0, 200.0]
    assert points.y.tolist() == [5.0, 4.0]
    points = series(metrics, "validation_loss", "step")
    assert points.x.tolist() == [2.0, 3.0]
    assert points.y.tolist() == [4.5, 4.0]
    assert len(series(metrics, "grad_norm", "tokens").x) == 0
    assert metrics.last("loss") == 4.0
    assert metrics.last("grad_norm") is None
    assert metrics.warning is None


def test_nested_metrics_have_joined_names_and_non_numbers_are_skipped(run):
    metrics = read_metrics(
        run(line(1, routers={"decoder.block_0": {"entropy": 0.5}}, note="text", is_new=True, loss=math.nan))
    )
    assert metrics.names == ["step", "tokens", "routers/decoder.block_0/entropy"]


BROKEN = {
    "the last, cut off": ([line(1), line(2)[:-9]], (2,), "skipped the last line"),
    "one in the middle": ([line(1), b"{\n", line(3)], (2,), "skipped unreadable lines: 2"),
    "no object": ([line(1), b"[1]\n", line(3)], (2,), "unreadable lines: 2"),
    "no step": ([line(1), b'{"loss": 1}\n', line(3)], (2,), "unreadable lines: 2"),
    "not UTF-8": ([line(1), b'"\xff"\n', line(3)], (2,), "unreadable lines: 2"),
    "many": ([line(1), *[b"x\n"] * 7], (2, 3, 4, 5, 6, 7, 8), "unreadable lines: 2, 3, 4, 5, 6, ..."),
}


@pytest.mark.parametrize(("lines", "broken", "warning"), BROKEN.values(), ids=BROKEN)
def test_malformed_lines_are_skipped_and_reported(run, lines, broken, warning):
    metrics = read_metrics(run(*lines))
    assert metrics.broken_lines == broken
    assert metrics.records[0] == {"step": 1, "tokens": 100}
    assert warning in metrics.warning


def test_a_missing_run_and_missing_metrics_are_distinct_errors(run, tmp_path):
    with pytest.raises(UserError, match=r"there is no run in .*nowhere: it has no operative_config\.gin"):
        read_metrics(tmp_path / "nowhere")
    with pytest.raises(UserError, match="has no metrics yet"):
        read_metrics(run(b""))
    with pytest.raises(UserError, match="has no metrics yet"):
        read_metrics(run(b'{"step": 1'))
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="has no metrics yet"):
        read_metrics(tmp_path)
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        parse_metrics(tmp_path / "metrics.jsonl")


def test_an_unknown_metric_is_an_error_that_lists_the_metrics(run):
    metrics = read_metrics(run(line(1, grad_norm=1.0, routers={"a": {"entropy": 0.5}})))
    require_metric("grad_norm", [metrics])
    with pytest.raises(UserError, match=r"did you mean 'grad_norm'\? There are step, tokens, grad_norm, routers/\*"):
        require_metric("grad_nrom", [metrics])
    with pytest.raises(UserError, match=r"routers has parts; name one of them: routers/a/entropy"):
        require_metric("routers", [metrics])


def smoothed_by_hand(values, window):
    """Definition by loops: a centered mean, and a least-squares line at the end."""
    half = (min(window, len(values)) - 1) // 2
    size = 2 * half + 1
    result = []
    for place in range(len(values) - half):
        reach = min(place, half)
        result.append(np.mean(values[place - reach : place + reach + 1]))
    line = np.polyfit(np.arange(len(values))[-size:], values[-size:], 1 if half else 0)
    return np.array([*result, *(np.polyval(line, place) for place in range(len(result), len(values)))])


@pytest.mark.parametrize("window", [1, 2, 3, 4, 7, 50])
@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_smoothing_is_a_centered_mean_that_ends_in_a_line(window, count):
    values = np.random.default_rng(0).normal(size=count)
    np.testing.assert_allclose(smooth(values, window), smoothed_by_hand(values, window), atol=1e-12)


def test_smoothing_does_not_change_a_straight_line():
    values = 3.0 - 0.25 * np.arange(30)
    np.testing.assert_allclose(smooth(values, 9), values, atol=1e-12)
