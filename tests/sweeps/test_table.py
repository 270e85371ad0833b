"""Tables of sweep members."""

import csv
import io
from pathlib import Path

import pytest

import ml
from ml.errors import UserError
from ml.plots.series import Metrics
from ml.sweeps import table
from ml.sweeps.file import Binding, Member, Sweep
from ml.sweeps.plan import PlannedRun
from ml.sweeps.state import State, Status, exit_text
from ml.training.run_folder import RunFolder


@pytest.fixture(scope="module")
def states():
    """Three members: one finished with the best loss, one finished, one failed early."""
    config = ml.load("recipes/tiny.gin")

    def state(name, rate, status, records, **more):
        member = Member(
            name, ("recipes/tiny.gin",), (Binding(f"AdamW.learning_rate = {rate}", "[grid]"),), {"rate": rate}
        )
        run = PlannedRun(member, config, RunFolder(Path("out") / name), 20)
        return State(run, status, Metrics(Path("m"), tuple(records)), **more)

    return [
        state("a", "0.1", Status.FINISHED, [{"step": 10, "validation_loss": 2.0}, {"step": 20, "loss": 1.0}]),
        state("b", "0.2", Status.FAILED, [{"step": 1, "loss": 9.0}], exit_code=1, reason="not finite"),
        state("c", "0.3", Status.FINISHED, [{"step": 20, "loss": 1234.5, "validation_loss": 1.5, "grad_norm": 0.25}]),
    ]


def names(states):
    return [state.run.member.name for state in states]


def test_members_are_sorted_by_the_last_value_and_missing_values_come_last(states):
    assert table.default_order(states) == "validation_loss"
    assert names(table.in_order(states, "validation_loss")) == ["c", "a", "b"]
    assert names(table.in_order(states, "-loss")) == ["c", "b", "a"]
    assert names(table.in_order([], "anything")) == []
    with pytest.raises(UserError, match="no member has measured 'los'; did you mean 'loss'"):
        table.in_order(states, "los")


def test_without_validation_the_order_is_that_of_a_named_set_or_of_the_training_loss(states):
    assert table.default_order([states[1]]) == "loss"
    named = Metrics(Path("m"), ({"step": 1, "validation_books_loss": 1.0},))
    assert table.default_order([State(states[0].run, Status.FINISHED, named)]) == "validation_books_loss"


def test_the_table_for_a_terminal(states):
    assert table.as_text(table.in_order(states, "validation_loss"), "validation_loss").splitlines() == [
        "rate  step  validation_loss    loss  status",
        "----  ----  ---------------  ------  -------------------",
        "0.3     20           1.5000   1,234  finished",
        "0.1     20           2.0000  1.0000  finished",
        "0.2      1                   9.0000  failed: exit code 1",
    ]


def test_the_csv_table_has_every_metric(states):
    rows = list(csv.DictReader(io.StringIO(table.as_csv(states))))
    assert [row["member"] for row in rows] == ["a", "b", "c"]
    assert rows[2]["grad_norm"] == "0.25"
    assert rows[2]["rate"] == "0.3"
    assert (rows[1]["status"], rows[1]["exit_code"], rows[1]["validation_loss"]) == ("failed", "1", "")


def test_the_json_has_the_settings_and_the_result_of_each_member(states):
    sweep = Sweep(Path("sweep.toml"), tuple(state.run.member for state in states))
    content = table.as_json(sweep, states)
    assert content["file"] == "sweep.toml"
    assert content["members"][1] == {
        "name": "b",
        "folder": "out/b",
        "fingerprint": ml.load("recipes/tiny.gin").fingerprint,
        "gin_file": ["recipes/tiny.gin"],
        "gin_bindings": ["AdamW.learning_rate = 0.2"],
        "choices": {"rate": "0.2"},
        "status": "failed",
        "exit_code": 1,
        "reason": "not finite",
        "last": {"step": 1, "loss": 9.0},
    }


def test_exit_codes_are_described_in_words():
    assert [exit_text(code) for code in (1, -9, -15, -300)] == [
        "exit code 1",
        "killed by SIGKILL",
        "killed by SIGTERM",
        "killed by signal 300",
    ]
