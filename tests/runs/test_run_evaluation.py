"""`Run.evaluate` against the command line; the numbers themselves are tested in tests/cli/test_evaluate.py."""

import functools
import json

import pytest

CASES = {
    "validation sets": ({}, []),
    "checkpoint": ({"step": 2, "average": True}, ["--step=2", "--average"]),
    "texts": ({"data": "more", "pattern": "*.txt"}, ["--data", "more", "--pattern=*.txt"]),
    "windows": (
        {"data": ["more", "text.txt"], "context": 16, "stride": 4, "batch_size": 2},
        ["--data", "more", "text.txt", "--context=16", "--stride=4", "--batch_size=2"],
    ),
}


@pytest.mark.parametrize(("options", "flags"), CASES.values(), ids=CASES)
def test_the_numbers_are_those_of_the_command_line(run, juniper, folder, monkeypatch, options, flags):
    printed = json.loads(juniper("evaluate", "run", "--json", *flags))
    assert run.evaluate(**options) == {**printed, "run": str(folder / "run")}


def test_the_validation_loss_is_that_of_training(run):
    (found,) = run.evaluate()["validation_sets"]
    assert found["loss"] == pytest.approx(run.metrics()[-1]["validation_loss"], rel=1e-6)


@pytest.mark.slow  # lm_eval is slow to import
def test_tasks_of_the_harness_give_the_numbers_of_the_command_line(run, juniper, folder, monkeypatch):
    from lm_eval import tasks

    alone = functools.partial(tasks.TaskManager, include_defaults=False)  # it reads thousands of files of other tasks
    monkeypatch.setattr(tasks, "TaskManager", alone)
    task = folder / "tasks"
    task.mkdir(exist_ok=True)
    (task / "rows.jsonl").write_text("".join(json.dumps({"q": f"{n} is", "a": f" {n}"}) + "\n" for n in range(4)))
    (task / "task.yaml").write_text(
        "task: sums\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: '{task / 'rows.jsonl'}'}}}}\n"
        "test_split: test\noutput_type: loglikelihood\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{a}}'\n"
        "metric_list: [{metric: perplexity}, {metric: acc}]\n"
    )
    found = run.evaluate(tasks="sums", task_folder=task, limit=3)
    printed = json.loads(
        juniper("evaluate", "run", "--json", "--tasks=sums", "--task_folder=tasks", "--limit=3").splitlines()[-1]
    )
    assert found["results"]["sums"]["perplexity,none"] > 1.0
    assert found["results"] == printed["results"]
    assert "|sums" in juniper("evaluate", "run", "--tasks=sums", "--task_folder=tasks", "--limit=3")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 3}, "^stride goes with data$"),
        ({"limit": 3, "num_fewshot": 0}, "^num_fewshot, limit goes with tasks$"),
        ({"data": "more", "tasks": "x"}, "^data and tasks are two evaluations: ask for one at a time$"),
        ({"data": "more", "context": 8, "stride": 9}, "^stride=9 would skip tokens: it can be at most context, 8$"),
        ({"data": "nowhere"}, "no such file or folder: nowhere"),
    ],
)
def test_a_wrong_argument_is_a_user_error_in_the_words_of_python(run, folder, monkeypatch, options, message):
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match=message):
        run.evaluate(**options)


@pytest.fixture(autouse=True)
def _in_the_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
