"""Every command of docs/finetuning.md in order, for a small Llama and a small Qwen3-MoE."""

import contextlib
import io
import json
import re
import shlex
from pathlib import Path

import peft
import pytest
import tokenizers
import torch
import transformers
from chat_shapes import QWEN_2, SPECIAL, write_template, write_tokenizer
from interop.hub_models import oracle_of, saved
from warm_python import run_python

import ml
from ml.cli import verbs
from ml.data.chat.forms import conversation_of

ROOT = Path(__file__).parents[2]
INTRODUCTION, *SECTIONS = (ROOT / "docs" / "finetuning.md").read_text().split("\n## ")
SHORT = [
    "Trainer.num_steps = 2",
    "CosineSchedule.warmup_steps = 0",
    "Trainer.sequence_length = 64",
    "LoRA.B_initialization = @normal",  # else two steps hardly change the answers
    "normal.std = 0.1",
]
MODELS = {
    "Llama": {"rms_norm_eps": 1e-6},
    "Qwen3Moe": {"moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2},
}
QUESTION = [{"role": "user", "content": "What is 2 + 3?"}]


def commands(section):
    blocks = re.findall(r"^```sh\n(.*?)^```$", section, re.M | re.S)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def run_section(section, folder, verbs=None, **replaced):
    """Runs the commands of a section in a folder, all or those of some verbs; returns what they printed."""
    printed = []
    for program, *arguments in commands(section):
        assert program == "python"
        if verbs is not None and not verbs & set(arguments):
            continue
        if arguments[0] == "train.py":
            used = [binding for binding in SHORT if "models/lora.gin" in " ".join(arguments) or "normal" not in binding]
            arguments[0] = str(ROOT / "train.py")
            arguments += [f"--gin_bindings={binding}" for binding in used]
        for old, new in replaced.items():
            arguments = [argument.replace(old, new) for argument in arguments]
        printed.append(run(arguments, folder))
    return printed


def run(arguments, folder):
    """Runs a command, a verb in this process, which has what it imports; returns what it printed."""
    if arguments[:2] != ["-m", "ml"]:
        done = run_python(*arguments, cwd=folder)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        return done.stdout
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as printed:
        assert verbs.main(arguments[2:]) == 0, arguments
    return printed.getvalue()


@pytest.fixture(scope="module", params=MODELS)
def tuned(request, tmp_path_factory):
    """A folder in which the sections about an instructed model were run, of the second model what depends on it."""
    folder = tmp_path_factory.mktemp("finetuning")
    hub = write_tokenizer(folder / "Llama-3.2-1B-Instruct")
    write_template(hub, QWEN_2)
    saved(oracle_of(request.param, {"vocab_size": num_tokens(hub), **MODELS[request.param]}), hub)
    write_chats(folder)
    for section in SECTIONS[:3]:
        run_section(section, folder, None if request.param == "Llama" else {"train.py", "export"})
    return folder


def num_tokens(folder):
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()


def write_chats(folder):
    chats = [[QUESTION[0], {"role": "assistant", "content": f"{number}"}] for number in range(60)]
    (folder / "chats.jsonl").write_text("\n".join(json.dumps({"messages": chat}) for chat in chats))


def answer(model, folder):
    """Tokens of the answer of transformers, greedy."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    made = model.generate(**inputs, max_new_tokens=20, do_sample=False)
    return made[0, inputs["input_ids"].shape[1] :].tolist(), tokenizer


def loaded(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def assert_same_answer(run, found, tokenizer):
    """Compares an answer with that of a run, which ends before the token that ends it."""
    text = run.generate(messages=QUESTION, temperature=0.0, num_tokens=20)
    if found[-1] in tokenizer.convert_tokens_to_ids(["<|im_end|>", "</s>"]):
        found = found[:-1]
    assert tokenizer.decode(found, skip_special_tokens=False) == text
    assert text


def test_transformers_answers_as_the_runs_from_the_exported_folders(tuned, monkeypatch):
    monkeypatch.chdir(tuned)
    tokens = torch.arange(20)[None]
    for name, exported in (("full", "full"), ("lora", "merged")):
        run, model = ml.open_run(tuned / "runs" / name), loaded(exported)
        torch.testing.assert_close(model(tokens).logits, run.build()(tokens), rtol=1e-4, atol=1e-4)
        assert_same_answer(run, *answer(model, exported))
        for kept in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            assert Path(exported, kept).read_bytes() == Path("Llama-3.2-1B-Instruct", kept).read_bytes()
    assert not torch.equal(loaded("full")(tokens).logits, loaded("Llama-3.2-1B-Instruct")(tokens).logits)


def test_peft_answers_as_the_run_from_the_exported_adapter(tuned, monkeypatch):
    monkeypatch.chdir(tuned)
    run, base, tokens = ml.open_run(tuned / "runs/lora"), loaded("Llama-3.2-1B-Instruct"), torch.arange(20)[None]
    before = base(tokens).logits
    model = peft.PeftModel.from_pretrained(base, "adapter").eval()
    torch.testing.assert_close(model(tokens).logits, run.build()(tokens), rtol=1e-4, atol=1e-4)
    assert (model(tokens).logits - before).abs().max() > 0.1
    assert_same_answer(run, *answer(model, "merged"))


def test_the_program_of_the_page_prints_both_answers(tuned, monkeypatch, capsys):
    monkeypatch.chdir(tuned)
    (program,) = re.findall(r"^```\n(import peft\n.*?)^```$", SECTIONS[2], re.M | re.S)
    exec(compile(program, "finetuning.md", "exec"), {})
    merged, adapted = capsys.readouterr().out.split("<|im_start|>system")[1:]
    assert merged == adapted
    assert "What is 2 + 3?<|im_end|>\n<|im_start|>assistant\n" in merged


def test_a_base_model_gets_the_tokens_of_chatml(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hub = write_tokenizer(tmp_path / "Llama-3.2-1B", special=[name for name in SPECIAL if "im_" not in name])
    size = num_tokens(hub)
    saved(oracle_of("Llama", {"vocab_size": size, "bos_token_id": None}), hub)
    write_chats(tmp_path)
    printed, _ = run_section(SECTIONS[3], tmp_path, **{"128258": str(size + 2)})
    new = f"tokens {size} to {size + 1} are new and start from the mean of the earlier rows"
    assert f"{new} in embeddings.token.weight, head.weight" in printed
    run, model = ml.open_run("runs/chatml"), loaded("chatml")
    assert model.config.vocab_size == size + 2
    assert model.generation_config.eos_token_id[-1] == size + 1
    found, tokenizer = answer(model, "chatml")
    chat = [*QUESTION, {"role": "assistant", "content": "5"}]
    expected = run._trainer.data.chat.example(conversation_of({"messages": chat})).tokens.tolist()
    assert tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"] == expected[: len(expected) - 1]
    assert_same_answer(run, found, tokenizer)
