"""Hostile run folders: each command ends with one message, and nothing is run."""

import json
import os
import pickle
import shutil
import sys
from pathlib import Path

import pytest
from small_run import SMALL

import ml
from ml.cli import train
from ml.cli.verbs import main
from ml.errors import UserError
from ml.run_files import read_records
from ml.training import RunFolder

sys.path.append(str(Path(__file__).parents[1] / "training" / "checkpoints"))
from hostile import archive_of, index_of, reseal, touching, write_index


@pytest.fixture
def hostile(folder, tmp_path, monkeypatch):
    """A copy of a run in the working folder."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(folder / "run", "given"))


@pytest.fixture
def canary(tmp_path):
    """A file that only code in the hostile folder makes."""
    return tmp_path / "canary"


@pytest.fixture
def command(capsys):
    """Calls a command; returns its exit code and what it printed to standard error."""

    def call(*arguments):
        try:
            code = train.main(list(arguments[1:])) if arguments[0] == "train" else main(list(arguments))
        except SystemExit as left:
            code = left.code
        return code, capsys.readouterr().err

    return call


def resume(folder):
    bindings = [f"--gin_bindings={line}" for line in [*SMALL, f"TextFiles.paths = {str(folder / 'text.txt')!r}"]]
    return ["train", "--gin_file=recipes/tiny.gin", *bindings, "--run_dir=given"]


def of_weights(folder):
    """Every command that reads a checkpoint."""
    return {
        "generate": ["generate", "given", "--prompt=1", "--num_tokens=1"],
        "evaluate": ["evaluate", "given", f"--data={folder}/more/a.txt"],
        "export": ["export", "given", "out.safetensors"],
        "resume": resume(folder),
        "init_from": [*resume(folder)[:-1], "--run_dir=new", "--init_from=given"],
        "branch": [*resume(folder)[:-1], "--run_dir=new", "--init_from=given", "--init_state=all"],
        "repeat": ["train", "--gin_file=given/operative_config.gin", "--run_dir=given"],
    }


WEIGHTS = list(of_weights(Path()))


def require_refused(found, file):
    """Requires exit code 2 and one message, which names the file."""
    code, errors = found
    assert code == 2, errors
    assert "Traceback" not in errors
    assert file in errors
    return errors


@pytest.mark.parametrize("name", WEIGHTS)
def test_no_command_runs_what_an_index_calls(hostile, canary, command, folder, name):
    checkpoint = hostile / "checkpoints/step_4"
    index = index_of(checkpoint)
    index.planner_data = touching(canary)
    write_index(checkpoint, index)
    reseal(checkpoint)
    require_refused(command(*of_weights(folder)[name]), "given/checkpoints/step_4/.metadata")
    assert not canary.exists()
    pickle.loads((checkpoint / ".metadata").read_bytes())
    assert canary.exists(), "the test must be able to fail"


@pytest.mark.parametrize("name", WEIGHTS)
def test_no_command_runs_what_a_file_of_tensors_calls(hostile, canary, command, folder, name):
    checkpoint = hostile / "checkpoints/step_4"
    index = index_of(checkpoint)
    content = b""
    for place in index.storage_data.values():
        part = archive_of(touching(canary))
        part += bytes(max(0, place.length - len(part)))
        place.offset, place.length = len(content), len(part)
        content += part
    (checkpoint / "__0_0.distcp").write_bytes(content)
    write_index(checkpoint, index)
    reseal(checkpoint)
    require_refused(command(*of_weights(folder)[name]), "given/checkpoints/step_4/__0_0.distcp")
    assert not canary.exists()


@pytest.mark.parametrize("name", ["generate", "evaluate", "init_from", "repeat", "diff"])
@pytest.mark.parametrize("where", ["evil.py", "code/evil.py"])
def test_no_command_imports_what_lies_in_a_run(hostile, canary, command, folder, name, where):
    (hostile / where).parent.mkdir(exist_ok=True)
    (hostile / where).write_text(f"open({str(canary)!r}, 'w').close()\n")
    operative = hostile / "operative_config.gin"
    operative.write_text("import evil\n" + operative.read_text())
    commands = of_weights(folder) | {"diff": ["diff", "given/operative_config.gin", "recipes/tiny.gin"]}
    require_refused(command(*commands[name]), "operative_config.gin:1")
    assert not canary.exists()


@pytest.mark.parametrize("where", ["evil.py", "code/evil.py", "checkpoints/step_4/evil.py"])
def test_a_branch_imports_nothing_for_the_configuration_of_a_checkpoint(hostile, canary, command, folder, where):
    (hostile / where).parent.mkdir(exist_ok=True)
    (hostile / where).write_text(f"open({str(canary)!r}, 'w').close()\n")
    operative = hostile / "checkpoints/step_4/operative_config.gin"
    operative.write_text("import evil\n" + operative.read_text())
    reseal(operative.parent)
    require_refused(command(*of_weights(folder)["branch"]), "step_4/operative_config.gin:1")
    assert not canary.exists()


def test_open_run_runs_nothing_either(hostile, canary):
    checkpoint = hostile / "checkpoints/step_4"
    (checkpoint / ".metadata").write_bytes(pickle.dumps(touching(canary)))
    reseal(checkpoint)
    run = ml.open_run(hostile)
    for call in (run.build, lambda: run.generate("1"), lambda: run.export("out"), lambda: run.build(4)):
        with pytest.raises(UserError, match=r"step_4/\.metadata"):
            call()
    assert not canary.exists()


def test_a_large_model_is_not_allocated_for_a_small_checkpoint(hostile, command):
    """10 TB of weights by the configuration, some kilobytes by the checkpoint."""
    operative = hostile / "operative_config.gin"
    lines = operative.read_text().splitlines()
    size = "LanguageModel.hidden_size = "
    assert any(line.startswith(size) for line in lines)
    operative.write_text("\n".join(f"{size}1048576" if line.startswith(size) else line for line in lines))
    errors = require_refused(command("generate", "given", "--prompt=1"), "given/checkpoints/step_4")
    assert "of another shape" in errors


NESTED = "[" * 100_000
RECORD = '{"path": "a", "configurable": "b", "parameter": "c", "value": "1", "source": "flag", "location": "d"'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        NESTED,
        "[]",
        "{}",
        '{"records": 1}',
        '{"records": [1]}',
        '{"records": [{"path": 1}]}',
        f'{{"records": [{RECORD}, "explicit": "x", "overrode": []}}]}}',
        f'{{"records": [{RECORD}, "explicit": true, "overrode": [{{"value": 1, "source": "", "location": ""}}]}}]}}',
        f'{{"records": [{RECORD}, "explicit": true, "overrode": [], "more": 1}}]}}',
        f'{{"records": [{RECORD.replace("1", chr(92) + "u001b]0;title")}, "explicit": true, "overrode": []}}]}}',
    ],
)
@pytest.mark.parametrize("verb", [["explain", "given", "*"], ["diff", "given", "given"]], ids=["explain", "diff"])
def test_a_wrong_provenance_is_one_message(hostile, command, verb, text):
    (hostile / "provenance.json").write_text(text)
    require_refused(command(*verb), "given/provenance.json")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"\xff\n", "byte 1 is not UTF-8"),
        (b'{"step": 2, "loss": \x80}\n', "byte 21 is not UTF-8"),
        (b"\0\0\0\n", "it is not JSON"),
        (NESTED.encode() + b"\n", "it is not JSON"),
        (b'{"step": 2\n', "it is not JSON"),
        (b"[1]\n", "it is not an object with a step"),
        (b'{"step": "2"}\n', "it is not an object with a step"),
        (b"\n", "it is not JSON"),
    ],
)
def test_a_bad_line_of_metrics_is_named_with_its_file(tmp_path, line, reason):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_bytes(b'{"step": 1}\n' + line + b'{"step": 3}\n')
    for read in (lambda: list(read_records(metrics)), RunFolder(tmp_path).metrics):
        with pytest.raises(UserError, match=r"metrics\.jsonl:2 is damaged: ") as raised:
            read()
        assert reason in str(raised.value)


def test_a_bad_byte_in_metrics_is_one_message_of_each_command(hostile, command, folder):
    metrics = hostile / "metrics.jsonl"
    lines = metrics.read_bytes().splitlines(keepends=True)
    metrics.write_bytes(b"".join([lines[0], b"\xff\n", *lines[1:]]))
    with pytest.raises(UserError, match=r"given/metrics\.jsonl:2"):
        ml.open_run(hostile).metrics()
    require_refused(command(*resume(folder)), "given/metrics.jsonl:2")
    code, errors = command("plot", "given", "--output=runs.png")
    assert (code, errors) == (0, "given/metrics.jsonl: skipped unreadable lines: 2\n")


def test_metrics_after_the_checkpoint_may_be_damaged(hostile, command, folder):
    """A power failure can lose them; those before a checkpoint were flushed."""
    metrics = hostile / "metrics.jsonl"
    lines = metrics.read_bytes().splitlines(keepends=True)
    shutil.rmtree(hostile / "checkpoints/step_4")
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
    metrics.write_bytes(b"".join([*lines[:3], b"\0\0\n", b'{"step']))
    assert command(*resume(folder))[0] == 0
    assert [record["step"] for record in ml.open_run(hostile).metrics()] == [1, 2, 3, 4]


def test_absurd_numbers_and_depths_of_metrics_are_skipped_in_a_plot(hostile, command):
    nested = {"step": 1}
    for _ in range(300):
        nested = {"step": 1, "a": nested}
    with (hostile / "metrics.jsonl").open("a") as file:
        for number in (10**400, float("nan"), float("inf"), "x", None, nested):
            file.write(json.dumps({"step": 1, "tokens": 1, "loss": number}) + "\n")
    assert command("plot", "given", "--output=runs.png") == (0, "")


FILES = [
    "operative_config.gin",
    "provenance.json",
    "metrics.jsonl",
    "samples.jsonl",
    "checkpoints",
    "tokenizer/record.json",
    "code/own.py",
]


@pytest.mark.parametrize("file", [*FILES, "checkpoints/step_9"])
@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_a_file_outside_is_neither_read_nor_written(hostile, tmp_path, command, folder, file, kind):
    outside, path = tmp_path / "outside", hostile / file
    if path.exists():
        shutil.move(path, outside)
    else:
        path.parent.mkdir(exist_ok=True)
        outside.write_text("of the user")
    is_fifo = kind == "fifo"
    os.mkfifo(path) if is_fifo else path.symlink_to(outside)
    before = outside.read_bytes() if outside.is_file() else sorted(outside.iterdir())
    wrong = "is neither a file nor a folder" if is_fifo else f"is a symbolic link out of the run folder, to {outside}"
    verbs = [["generate", "given", "--prompt=1"], ["explain", "given", "*"], ["plot", "given"], resume(folder)]
    for verb in [*verbs, ["diff", "given", "given"], ["export", "given", "x"], ["evaluate", "given"]]:
        assert wrong in require_refused(command(*verb), f"given/{file}")
    assert before == (outside.read_bytes() if outside.is_file() else sorted(outside.iterdir()))


def test_a_run_folder_may_be_a_link_and_have_links_inside(hostile, tmp_path, command):
    (tmp_path / "link").symlink_to(hostile.resolve())
    (hostile / "checkpoints/newest").symlink_to("step_4")
    (hostile / "notes").symlink_to("/etc")  # nothing of ours
    assert command("generate", "link", "--prompt=1", "--num_tokens=1")[0] == 0


def test_temporary_files_are_no_way_out(hostile, tmp_path, command, folder):
    outside = tmp_path / "outside"
    outside.write_text("of the user")
    for name in ("operative_config.gin", "provenance.json", "environment.json", "metrics.jsonl"):
        (hostile / f".{name}.tmp").symlink_to(outside)
    assert command(*resume(folder))[0] == 0
    assert outside.read_text() == "of the user"


@pytest.mark.parametrize("text", ["\xff", NESTED, "x = " + NESTED, "x = " + "(" * 3000, "\0", "a" * 100_000, "=", "'"])
def test_a_wrong_operative_config_is_a_message(hostile, command, folder, text):
    (hostile / "operative_config.gin").write_bytes(text.encode("latin-1"))
    for name in ("generate", "resume", "init_from", "repeat"):
        require_refused(command(*of_weights(folder)[name]), "operative_config.gin")
