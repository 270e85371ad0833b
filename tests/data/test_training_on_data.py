"""Small real runs on every kind of data: any number of ranks and loader threads, and data lost during a run."""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from prepared import write_folder
from warm_python import run_python

import ml
from ml.api import build_trainer
from ml.data import DataError
from ml.training import RunFailure, RunFolder, train
from ml.training.checkpoints.weight_files import read_weights
from ml.training.metrics.throughput import MACHINE_METRICS

CPU = torch.device("cpu")
TINY = """
LanguageModel.vocab_size = 259
LanguageModel.hidden_size = 16
Repeat.num_blocks = 1
Attention.num_heads = 2
DecoderBlock.dropout = 0.2
CosineSchedule.warmup_steps = 2
Trainer.num_steps = 8
Trainer.batch_size = 4
Trainer.sequence_length = 16
Trainer.log_every = 1
Checkpoints.every = 2
Validation.every = 4
Validation.num_tokens = 100
TextFiles.paths = ['text.txt', 'other.txt']
TokenFiles.paths = 'tokens'
ChatFiles.paths = 'chat.jsonl'
"""
FILL = "FillInTheMiddle.prefix = 256\nFillInTheMiddle.suffix = 257\nFillInTheMiddle.middle = 258"
DATA = {
    "windows": "",
    "random windows": "TextData.sampling = @RandomWindows",
    "packed": "TextData.sampling = @PackedDocuments\nPackedDocuments.window = 16",
    "token files": "Trainer.data = @TokenFiles\nTokenFiles.sampling = @PackedDocuments",
    "filled": f"Trainer.data = @TokenFiles\nTokenFiles.fill_in_the_middle = @FillInTheMiddle\n{FILL}",
    "chat": "Trainer.data = @ChatData",
    "mixture": """
        Trainer.data = @Mixture
        Mixture.datasets = {'one': @TextData, 'two': @TokenFiles, 'talk': @ChatData}
        Mixture.weights = {'one': 1.0, 'two': 2.0, 'talk': 0.5}""",
    "concatenation": """
        Trainer.data = @Concatenation
        Concatenation.datasets = {'one': @TextData, 'two': @TokenFiles}
        two/TokenFiles.separate_documents = True""",
}


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = [f"{number} squared is {number * number}.\n" for number in range(200)]
    Path("text.txt").write_text("".join(texts))
    Path("other.txt").write_text("".join(texts[::-1]))
    write_folder(Path("tokens/train"), texts[:150], shard_tokens=700)
    write_folder(Path("tokens/validation"), texts[150:])
    lines = [{"prompt": f"{n}^2?", "completion": str(n * n)} for n in range(100)]
    Path("chat.jsonl").write_text("\n".join(map(json.dumps, lines)))


def trainer_of(*bindings):
    return build_trainer(ml.load(bindings=[TINY, *bindings], allow_unused_bindings=True))


def trained(name, *bindings):
    trainer, run = trainer_of(*bindings), RunFolder(Path(name))
    train(trainer, trainer.open_data(), run, CPU, stream=io.StringIO())
    weights = (run.checkpoints / f"step_{trainer.num_steps}/__0_0.distcp").read_bytes()
    metrics = [{k: value for k, value in record.items() if k not in MACHINE_METRICS} for record in run.metrics()]
    return weights, metrics


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
@pytest.mark.parametrize("micro_batch_size", [1, 4])
def test_the_batches_of_all_ranks_are_the_batch_of_one_rank(data, micro_batch_size):
    trainer = trainer_of("Trainer.batch_size = 8", "Trainer.micro_batch_size = 8", data)
    dataset = trainer.open_data().training
    for step in (1, 7):
        (whole,) = trainer.batches(dataset, step)
        for num_ranks in (1, 2, 4, 8):
            vars(trainer)["micro_batch_size"] = min(micro_batch_size, 8 // num_ranks)
            shares = [batch for rank in range(num_ranks) for batch in trainer.batches(dataset, step, rank, num_ranks)]
            assert len(shares) == 8 // trainer.micro_batch_size
            for name, tensor in whole.inputs.items():
                assert torch.equal(torch.cat([share.inputs[name] for share in shares]), tensor)
            assert sum(share.num_targets for share in shares) == whole.num_targets
        vars(trainer)["micro_batch_size"] = 8


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
def test_a_run_is_bitwise_equal_for_any_number_of_loader_workers(data):
    bindings = ["Trainer.num_steps = 5", "Checkpoints.every = None"]
    one, *others = (
        trained(f"{number} workers", data, *bindings, f"Trainer.num_loader_workers = {number}") for number in (1, 0, 4)
    )
    assert others == [one, one]


def test_a_resumed_run_continues_with_the_next_batches():
    data = DATA["mixture"]
    expected = trained("whole", data)
    trainer, run = trainer_of(data), RunFolder(Path("parts"))
    vars(trainer)["num_steps"] = 4  # with the schedule of eight
    train(trainer, trainer.open_data(), run, CPU, stream=io.StringIO())
    assert trained("parts", data)[0] == expected[0]


def test_changed_data_is_refused_on_resuming():
    trainer, run = trainer_of(DATA["token files"]), RunFolder(Path("run"))
    vars(trainer)["num_steps"] = 4
    train(trainer, trainer.open_data(), run, CPU, stream=io.StringIO())
    Path("tokens").rename("before")
    write_folder(Path("tokens/train"), ["another text"] * 100)
    write_folder(Path("tokens/validation"), ["another text"] * 10)
    trainer = trainer_of(DATA["token files"])
    with pytest.raises(ValueError, match="data"):
        train(trainer, trainer.open_data(), run, CPU, stream=io.StringIO())


class Lost(io.StringIO):
    """Progress output that truncates all files of a folder when the run reports a step."""

    def __init__(self, step, folder):
        super().__init__()
        self.step, self.folder = step, folder

    def write(self, text):
        if text.startswith(f"step {self.step}/"):
            cut(self.folder)
        return super().write(text)


def cut(folder):
    for file in Path(folder).glob("*.tokens"):
        os.truncate(file, 0)


@pytest.mark.parametrize("part", ["train", "validation"])
def test_data_lost_during_a_run_ends_it_with_its_last_checkpoint(part):
    trainer, run = trainer_of(DATA["token files"], "Validation.every = 7"), RunFolder(Path("run"))
    dataset = trainer.open_data()
    with pytest.raises(RunFailure, match=rf"after step \d, and training stopped; checkpoints/step_\d .*tokens/{part}"):
        train(trainer, dataset, run, CPU, stream=Lost(3, f"tokens/{part}"))
    assert run.checkpoints.is_dir()
    kept = sorted(int(path.name.removeprefix("step_")) for path in run.checkpoints.iterdir())
    assert kept
    assert kept[-1] < 8
    read_weights(run.checkpoints / f"step_{kept[-1]}", trainer.start(CPU).model)


def test_invalid_data_at_the_start_is_a_user_error():
    trainer = trainer_of(DATA["token files"])
    dataset = trainer.open_data()
    cut("tokens/train")
    with pytest.raises(DataError, match="has 0 bytes"):
        train(trainer, dataset, RunFolder(Path("run")), CPU, stream=io.StringIO())


def test_a_vocabulary_larger_than_that_of_the_model_is_refused():
    with pytest.raises(ml.ConfigError, match=r"its tokens go up to 255, and LanguageModel\.vocab_size is 200"):
        trainer_of(DATA["token files"], "LanguageModel.vocab_size = 200")
    Path("tokens").rename("elsewhere")
    trainer = trainer_of(DATA["token files"], "LanguageModel.vocab_size = 200")
    Path("elsewhere").rename("tokens")
    with pytest.raises(DataError, match=r"its tokens go up to 255, and LanguageModel\.vocab_size is 200"):
        trainer.open_data()


def test_a_token_outside_the_vocabulary_is_found_before_the_first_step():
    trainer = trainer_of()
    dataset = trainer.open_data()
    trainer.model.vocab_size = 60
    with pytest.raises(DataError, match=r"the data has token \d+, but LanguageModel\.vocab_size is 60"):
        train(trainer, dataset, RunFolder(Path("run")), CPU, stream=io.StringIO())


@pytest.mark.slow
def test_the_exit_code_is_1_for_lost_data_and_2_for_missing_data():
    program = Path(ml.__file__).parents[1] / "train.py"
    bindings = [*TINY.strip().splitlines(), *DATA["token files"].splitlines(), "Trainer.num_steps = 100000"]
    flags = [*(f"--gin_bindings={line}" for line in bindings), "--run_dir=run", "--allow_unused_bindings"]
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, program, *flags], stdout=pipe, stderr=pipe, text=True) as process:
        while process.poll() is None and not Path("run/checkpoints/step_2").exists():
            time.sleep(0.01)
        cut("tokens/train")
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    assert "and training stopped" in errors
    assert "Traceback" not in errors
    again = run_python(program, *flags, cwd=Path.cwd(), timeout=60)
    assert again.returncode == 2
    assert "it was truncated or replaced" in again.stderr
    assert "Traceback" not in again.stderr
