"""The parts of the guide in a separate folder: they train, resume, decode and separate documents."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from warm_python import run_python

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    """The files of the guide."""
    (tmp_path / "my_parts").mkdir()
    for name, text in re.findall(r"^```python\n# (my_parts/\w+\.py)\n(.*?)^```$", PAGE, re.M | re.S):
        (tmp_path / name).write_text(text)
    (first_lines,) = re.findall(r"^my_parts/__init__\.py +(.+)$", PAGE, re.M)
    (tmp_path / "my_parts" / "__init__.py").write_text(first_lines + "\n")
    (config,) = re.findall(r"^```\n# my_run\.gin\n(.*?)^```$", PAGE, re.M | re.S)
    (tmp_path / "my_run.gin").write_text(config)
    return tmp_path


def python(folder: Path, *arguments: str, fails: bool = False) -> subprocess.CompletedProcess:
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = run_python(*arguments, cwd=folder, env=environment)
    assert fails or done.returncode == 0, done.stderr
    return done


TRAIN = (str(ROOT / "train.py"), "--gin_file=my_run.gin")


def test_own_mixer_optimizer_and_data_train_generate_and_repeat(folder):
    done = python(folder, *TRAIN, "--run_dir=run")
    assert "step 20/20" in done.stdout
    assert "not reported" not in done.stdout
    records = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["loss"] < records[0]["loss"]
    assert all(record["mfu"] > 0 for record in records)
    texts = python(folder, "-m", "ml", "generate", "run", "--prompt=1+", "--num_tokens=5", "--temperature=0")
    assert texts.stdout.startswith("1+")
    assert "full forward pass" not in texts.stderr
    python(folder, str(ROOT / "train.py"), "--gin_file=run/operative_config.gin", "--run_dir=again")
    configs = [(folder / name / "operative_config.gin").read_bytes() for name in ("run", "again")]
    assert configs[0] == configs[1]


CHECK = """
import torch
import my_parts
from my_parts.mixers import RunningMean
from ml.layers import Cache, Context
from ml.layers.context import places_in_documents
from ml.models import materialize

B, T, H, LENGTHS = 2, 23, 6, (7, 1, 11, 4)
generator = torch.Generator().manual_seed(0)
x = torch.randn(B, T, H, dtype=torch.float64, generator=generator)
documents = torch.repeat_interleave(torch.arange(4), torch.tensor(LENGTHS)).expand(B, T)


def slow(layer, x):
    decay = torch.sigmoid(layer.logit + layer.initial_logit)
    seen = [range(max(0, t - layer.reach + 1), t + 1) for t in range(x.shape[1])]
    rows = [sum(decay ** (t - s) * x[:, s] for s in steps) for t, steps in enumerate(seen)]
    return layer.output(torch.stack(rows, dim=1))


for reach in (1, 3, 64):
    layer = materialize(RunningMean(H, reach=reach)).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn(parameter.shape, dtype=torch.float64, generator=generator))
    whole = slow(layer, x)
    alone = torch.cat([slow(layer, part) for part in x.split(LENGTHS, dim=1)], dim=1)
    torch.testing.assert_close(layer(x, Context()), whole)
    torch.testing.assert_close(layer(x, Context(places_in_documents(documents), documents)), alone)
    for numbers, expected in ((None, whole), (documents, alone)):
        for pieces in ([1] * T, [5, 1, 1, 9, 7]):
            cache, outputs, start = Cache(), [], 0
            for length in pieces:
                part = None if numbers is None else numbers[:, start : start + length]
                outputs.append(layer(x[:, start : start + length], Context(None, part, cache)))
                cache.advance(length, part)
                start += length
            torch.testing.assert_close(torch.cat(outputs, dim=1), expected)
print("equal")
"""


def test_the_mixer_is_the_slow_formula_packed_and_from_a_cache(folder):
    assert python(folder, "-c", CHECK).stdout == "equal\n"


def test_a_missing_declaration_is_reported_in_the_dry_run(folder):
    mixers = folder / "my_parts" / "mixers.py"
    text = mixers.read_text()
    for line in ("    decodes = True\n", "    separates_documents = True\n"):
        text = text.replace(line, "")
    mixers.write_text(text[: text.index("    def training_flops_per_token")])
    bindings = ["--gin.Trainer.samples=@Samples", "--gin.Samples.prompts='1+'"]
    done = python(folder, *TRAIN, "--dry_run", *bindings)
    place = "decoder.block_1.mixer (RunningMean)"
    assert "FLOPs per token   unknown" in done.stdout
    assert f"mfu is not reported: {place} does not declare its FLOPs" in done.stdout
    assert f"samples: every token takes the full forward pass, which is slow: {place} does not decode" in done.stdout
    packed = ["--gin.Trainer.data=@TextData", "--gin.TextData.sampling=@PackedDocuments", "--allow_unused_bindings"]
    refused = python(folder, *TRAIN, "--dry_run", *packed, fails=True)
    assert refused.returncode == 2
    assert f"{place} does not separate documents" in refused.stderr
    assert "Traceback" not in refused.stderr
    done = python(folder, *TRAIN, "--run_dir=run", *bindings)
    assert done.stdout.count("mfu is not reported") == done.stdout.count("full forward pass") == 1
    records = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert not any("mfu" in record for record in records)
    assert (folder / "run" / "samples.jsonl").read_text().count("\n") == 1
    text = python(folder, "-m", "ml", "generate", "run", "--prompt=1+", "--num_tokens=3")
    assert text.stderr.count("full forward pass") == 1


def test_a_buffer_without_values_is_an_error_of_the_dry_run(folder):
    mixers = folder / "my_parts" / "mixers.py"
    line = "        self.reach = reach\n"
    text = mixers.read_text().replace(line, f'{line}        self.register_buffer("seen", torch.zeros(3))\n')
    mixers.write_text(text)
    refused = python(folder, *TRAIN, "--dry_run", fails=True)
    assert refused.returncode == 2
    assert "decoder.block_1.mixer (RunningMean) has the buffer seen" in refused.stderr
    assert "ml.layers.Buffered" in refused.stderr
    assert "Traceback" not in refused.stderr
