"""The figure: data in its axes, colors, and that nothing is clipped."""

import itertools
import json

import numpy as np
import pytest
from PIL import Image

from ml.errors import UserError
from ml.plots.figure import Curve, Style, check_format, colors, draw, save
from ml.plots.series import parse_metrics, smooth


@pytest.fixture
def curve(tmp_path):
    """Returns a run of 60 logged steps with two validations."""

    def make(label, seed=0, **more):
        random = np.random.default_rng(seed)
        records = [
            {
                "step": step,
                "tokens": 5000 * step,
                "loss": float(5.0 / step + random.random()),
                "learning_rate": 1e-3 * step / 60,
                "tokens_per_second": 1e4 + seed,
                "seconds": 3.0 * step,
                **({"validation_loss": 4.0 / step, "validation_books_loss": 5.0} if step % 30 == 0 else {}),
                **more,
            }
            for step in range(1, 61)
        ]
        path = tmp_path / f"{seed}.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return Curve(label, parse_metrics(path)), records

    return make


def lines(axes):
    """Returns the lines of a panel by content."""
    found = {}
    for line in axes.lines:
        found.setdefault(line.get_gid(), []).append(line)
    return found


def test_the_axes_have_the_measured_values(curve):
    (first, records), (second, others) = curve("first"), curve("second", seed=1)
    figure = draw([first, second], Style(window=5))
    loss, rate, speed = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "loss (nats per token)",
        "learning rate",
        "tokens per second",
    ]
    assert loss.get_xlabel() == "tokens (thousands)"
    for number, source in enumerate([records, others]):
        raw, smoothed = lines(loss)["loss"][number], lines(loss)["loss smoothed"][number]
        values = np.array([record["loss"] for record in source])
        np.testing.assert_allclose(raw.get_xdata(), [record["tokens"] / 1000 for record in source])
        np.testing.assert_array_equal(raw.get_ydata(), values)
        np.testing.assert_array_equal(smoothed.get_ydata(), smooth(values, 5))
        assert raw.get_alpha() < 0.5
        held_out = lines(loss)["validation_loss"][number]
        np.testing.assert_allclose(held_out.get_xdata(), [150.0, 300.0])
        np.testing.assert_allclose(held_out.get_ydata(), [4.0 / 30, 4.0 / 60])
        assert len(lines(loss)["validation_books_loss"]) == 2
        (rates,) = [lines(rate)["learning_rate"][number]]
        np.testing.assert_array_equal(rates.get_ydata(), [record["learning_rate"] for record in source])
        assert {line.get_color() for line in (raw, smoothed, held_out, rates)} == {colors(2)[number]}
    assert speed.get_ylim()[0] == 0.0


def test_the_legend_names_the_runs_and_the_kinds_of_lines(curve):
    figure = draw([curve("first")[0], curve("second", seed=1)[0]], Style(window=6))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["first", "second"]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == [
        "training, each logged step",
        "training, mean of 5 logged steps",
        "validation",
        "validation: books",
    ]


def test_names_are_not_parsed_as_formulas(curve, tmp_path):
    save(draw([curve(r"$\frac{$")[0], curve("_hidden", seed=1)[0]], Style()), tmp_path / "a.png")


def test_without_smoothing_there_is_one_line_and_no_mean_in_the_legend(curve):
    loss = draw([curve("only")[0]], Style(window=1)).axes[0]
    assert "loss smoothed" not in lines(loss)
    assert lines(loss)["loss"][0].get_alpha() is None
    assert loss.get_legend().get_texts()[0].get_text() == "training"


def test_other_axes_scales_and_panels(curve):
    style = Style("seconds", ("grad_norm", "validation_loss"), None, frozenset({"x", "loss"}))
    figure = draw([curve("only", grad_norm=2.0)[0]], style)
    loss, rate, _, norm, held_out = figure.axes
    assert (loss.get_xscale(), loss.get_yscale(), rate.get_xscale(), rate.get_yscale()) == (
        "log",
        "log",
        "log",
        "linear",
    )
    assert loss.get_xlabel() == "minutes of training"
    np.testing.assert_allclose(lines(loss)["loss"][0].get_xdata()[-1], 3.0)
    np.testing.assert_array_equal(lines(norm)["grad_norm"][0].get_ydata(), [2.0] * 60)
    assert lines(held_out)["validation_loss"][0].get_marker() == "o"
    assert draw([curve("only")[0]], Style("step")).axes[0].get_xlabel() == "step"


def test_a_panel_without_data_is_omitted_and_negative_values_have_no_logarithm(curve):
    only = curve("only", skipped=0)[0]
    bare = Curve("bare", type(only.metrics)(only.metrics.path, ({"step": 1, "tokens": 10, "loss": 2.0},)))
    assert len(draw([bare], Style()).axes) == 1
    assert len(draw([bare, only], Style()).axes) == 3
    with pytest.raises(UserError, match="--log=skipped: nothing in the panel of skipped is above 0"):
        draw([only], Style(extra_metrics=("skipped",), logarithmic=frozenset({"skipped"})))


@pytest.mark.parametrize("count", [1, 9])
def test_nothing_is_clipped(curve, tmp_path, count):
    long = "a_parameter_of_many_words=0.001  another_one_with_a_long_value=@Something"
    save(
        draw([curve(f"{long} {n}", seed=n)[0] for n in range(count)], Style(extra_metrics=("seconds",))),
        tmp_path / "a.png",
    )
    picture = np.array(Image.open(tmp_path / "a.png").convert("L"))
    height, width = picture.shape
    assert width == 1650
    assert height > 1100
    border = np.concatenate(
        [picture[:3].ravel(), picture[-3:].ravel(), picture[:, :3].ravel(), picture[:, -3:].ravel()]
    )
    assert (border == 255).all()
    assert (picture < 128).mean() > 0.005


@pytest.mark.parametrize("count", [2, 5, 12])
def test_runs_differ_in_grayscale_and_from_white(count):
    luminance = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in colors(count)]
    assert all(lighter - darker > 0.5 / count for darker, lighter in itertools.pairwise(luminance))
    assert max(luminance) < 0.75


def test_an_unknown_format_or_a_missing_folder_is_an_error(curve, tmp_path):
    with pytest.raises(UserError, match=r"must end in \.png"):
        check_format(tmp_path / "a.text")
    figure = draw([curve("only")[0]], Style())
    with pytest.raises(UserError, match=r"cannot write .*a\.png: No such file or directory"):
        save(figure, tmp_path / "nowhere" / "a.png")
