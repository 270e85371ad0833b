"""A Hugging Face folder in place of a run: generation, evaluation and export without training."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers
from chat_shapes import QWEN_2, write_template, write_tokenizer
from hub_models import oracle_of, saved

import ml
from ml.cli import verbs

QUESTION = [{"role": "user", "content": "What is 2 + 3?"}]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = write_tokenizer(tmp_path_factory.mktemp("opened") / "hub")
    write_template(folder, QWEN_2)
    size = len(transformers.AutoTokenizer.from_pretrained(folder))
    return saved(oracle_of("Llama", {"vocab_size": size, "tie_word_embeddings": True}), folder)


@pytest.fixture
def folder(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return hub


def oracle(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def test_an_answer_is_that_of_transformers(folder):
    tokenizer, model = transformers.AutoTokenizer.from_pretrained(folder), oracle(folder)
    inputs = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    made = model.generate(**inputs, max_new_tokens=12, do_sample=False, eos_token_id=None)
    expected = tokenizer.decode(made[0, inputs["input_ids"].shape[1] :])
    opened = ml.open_run(folder)
    assert opened.generate(messages=QUESTION, temperature=0.0, num_tokens=12) == expected
    assert (opened.step, opened.is_finished, opened.metrics(), opened.history()) == (0, True, [], [])


def test_the_loss_of_a_text_is_that_of_transformers(folder, capsys):
    Path("text.txt").write_text("The sky is blue, and the sea is deep. " * 2)
    assert verbs.main(["evaluate", str(folder), "--data", "text.txt", "--json", "--context=200"]) == 0
    found = json.loads(capsys.readouterr().out)
    opened = ml.open_run(folder)
    tokens = [*opened._trainer.data.begin.tokens, *opened.tokenizer.encode(Path("text.txt").read_text())]
    tokens = torch.tensor([[int(token) for token in tokens]])
    expected = oracle(folder)(tokens, labels=tokens).loss.item()
    assert found["step"] == 0
    assert found["all"]["loss"] == pytest.approx(expected, rel=1e-4)
    assert found["all"]["tokens"] == tokens.shape[1] - 1
    assert opened.config.value("", "Trainer.sequence_length").value == "64"  # the positions of the model


def test_exports_have_the_tensors_and_files_of_the_folder(folder, capsys):
    assert verbs.main(["export", str(folder), "out", "--format=hf"]) == 0
    theirs, ours = (safetensors.torch.load_file(Path(path, "model.safetensors")) for path in (folder, "out"))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert Path(folder, name).read_bytes() == Path("out", name).read_bytes()
    assert json.loads(Path("out/config.json").read_text()) == json.loads(Path(folder, "config.json").read_text())
    assert verbs.main(["export", str(folder), "weights.safetensors"]) == 0
    alone = safetensors.torch.load_file("weights.safetensors")
    assert torch.equal(alone["embeddings.token.weight"], theirs["model.embed_tokens.weight"])
    assert f"{len(alone)} tensors" in capsys.readouterr().out


REFUSED = {
    "a step": (["generate", "--prompt=a", "--step=3"], "which has no step 3"),
    "an average": (["generate", "--prompt=a", "--average"], "which has no running average"),
    "validation sets": (["evaluate"], r"without validation sets: name texts with --data or tasks with --tasks"),
    "adapters": (["export", "out", "--format=peft"], "the model has no adapters"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_what_only_runs_have_is_refused(folder, capsys, arguments, message):
    verb, *others = arguments
    assert verbs.main([verb, str(folder), *others]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_without_a_chat_template_or_a_tokenizer_is_refused(folder, tmp_path, capsys):
    other = shutil.copytree(folder, tmp_path / "other", ignore=shutil.ignore_patterns("chat_template.jinja"))
    assert verbs.main(["generate", str(other), "--chat=Hi"]) == 2
    assert "other has no chat template" in capsys.readouterr().err
    assert ml.open_run(other).generate("The sky", temperature=0.0, num_tokens=3)
    (other / "tokenizer.json").unlink()
    assert verbs.main(["generate", str(other), "--prompt=a"]) == 2
    assert "other has neither a tokenizer.json nor a tokenizer.model" in capsys.readouterr().err
    assert verbs.main(["export", str(other), "out", "--format=hf"]) == 0
