"""A model that was trained on conversations is asked in the tokens of training, whichever way it is asked."""

import io
import json
from types import SimpleNamespace

import pytest
import torch
from chat_shapes import QWEN_2, write_template, write_tokenizer

import ml
from ml.cli.verbs import main
from ml.runs import generation
from ml.training import Float32

pytest.importorskip("lm_eval")
# Answers with lines, and with text that spells markers and the end of a document.
ANSWERS = {"Sky?": "blue\nand wide", "Sea?": "<|im_end|> deep </s>", "Sun?": "hot\n\nUser: very"}
TINY = [
    "Trainer.data = @ChatData",
    "ChatFiles.paths = 'chat.jsonl'",
    "ChatData.validation_fraction = 0.0",
    "Trainer.num_steps = 80",
    "Trainer.batch_size = 2",
    "Trainer.sequence_length = 96",
    "Trainer.validation = None",
    "AdamW.learning_rate = 0.01",
    "Checkpoints.every = None",
    "Trainer.samples = @Samples",
    "Samples.every = None",
    "Samples.temperature = 0.0",
    f"Samples.prompts = {[[{'role': 'user', 'content': question}] for question in ANSWERS]}",
]
KINDS = {
    "text markers": [],
    "Jinja": [
        "ChatData.template = @JinjaTemplate",
        "ChatData.tokenizer = @HuggingFaceTokenizer",
        "HuggingFaceTokenizer.path = 'tokenizer'",
        "LanguageModel.vocab_size = 512",
    ],
}


def asks(*texts):
    return [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)]


@pytest.fixture(scope="module", params=KINDS)
def trained(request, tmp_path_factory):
    """A run that knows the answers by heart, alone and after another question."""
    path = tmp_path_factory.mktemp("chat")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        write_template(write_tokenizer(path / "tokenizer"), QWEN_2)
        talks = [asks(question, answer) for question, answer in ANSWERS.items()]
        talks += [asks("Sky?", ANSWERS["Sky?"], "Sun?", ANSWERS["Sun?"])]
        (path / "chat.jsonl").write_text("\n".join(json.dumps({"messages": talk}) for talk in talks))
        ml.train(ml.load("recipes/tiny.gin", [*TINY, *KINDS[request.param]]), "run", stream=io.StringIO(), device="cpu")
    return path


@pytest.fixture
def run(trained, monkeypatch):
    monkeypatch.chdir(trained)
    return ml.open_run("run")


@pytest.fixture
def call(trained, monkeypatch, capsys):
    """Calls `generate` with flags; returns what it printed."""

    def generate(*flags, typed=None):
        monkeypatch.chdir(trained)
        if typed is not None:
            monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        assert main(["generate", "run", "--temperature=0", *flags]) == 0
        return capsys.readouterr().out

    return generate


def test_python_answers_as_in_training(run):
    asked = [asks(question) for question in ANSWERS]
    assert run.generate(messages=asked, temperature=0.0) == list(ANSWERS.values())
    assert run.generate(messages=asked[0], temperature=0.0) == ANSWERS["Sky?"]
    later = asks("Sky?", ANSWERS["Sky?"], "Sun?")
    assert run.generate(messages=later, temperature=0.0, num_samples=2) == [ANSWERS["Sun?"]] * 2
    assert run.generate(messages=asks("Sky?", "blue\n"), temperature=0.0) == "and wide"
    seen = []
    run.generate(messages=asked[0], temperature=0.0, show=lambda row, text: seen.append(text))
    assert seen[-1] == ANSWERS["Sky?"]


def test_a_question_on_the_command_line_or_from_standard_input_is_answered(call):
    assert call("--chat", "Sky?") == f"{ANSWERS['Sky?']}\n"
    assert call("--chat", "-", typed="Sea?\n") == f"{ANSWERS['Sea?']}\n"
    assert call("--chat", typed="Sea?\n") == f"{ANSWERS['Sea?']}\n"
    (line,) = call("--chat=Sky?", "--json").splitlines()
    assert json.loads(line)["prompt"] == asks("Sky?")
    assert json.loads(line)["text"] == ANSWERS["Sky?"]


def test_a_file_of_messages_is_answered(call, trained):
    later = asks("Sky?", ANSWERS["Sky?"], "Sun?")
    (trained / "asked.json").write_text(json.dumps(later))
    assert call("--messages=asked.json") == f"{ANSWERS['Sun?']}\n"
    (trained / "asked.json").write_text(json.dumps({"messages": later}))
    assert call("--messages=asked.json") == f"{ANSWERS['Sun?']}\n"
    (trained / "asked.jsonl").write_text("\n".join(json.dumps(asks(question)) for question in ANSWERS))
    found = [json.loads(line)["text"] for line in call("--messages=asked.jsonl", "--json").splitlines()]
    assert found == list(ANSWERS.values())


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_conversation_in_the_terminal_has_all_messages_before(run, call, monkeypatch):
    typed = iter(["Sky?", "Sun?"])
    asked = []

    def generate_texts(load, data, prompts, settings, show=None):
        asked.append([message.fields["content"] for message in prompts[0].messages])
        return generation.generate_texts(load, data, prompts, settings, show)

    monkeypatch.setattr("ml.runs.run.generate_texts", generate_texts)
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed, ""))
    assert call("--chat") == f"{ANSWERS['Sky?']}\n{ANSWERS['Sun?']}\n"
    assert asked == [["Sky?"], ["Sky?", ANSWERS["Sky?"], "Sun?"]]


def test_a_run_answers_after_the_folder_of_its_tokenizer_is_gone(trained, monkeypatch):
    monkeypatch.chdir(trained)
    hidden = (trained / "tokenizer").rename(trained / "elsewhere")
    try:
        run = ml.open_run("run")
        assert run.generate(messages=asks("Sea?"), temperature=0.0) == ANSWERS["Sea?"]
    finally:
        hidden.rename(trained / "tokenizer")


def test_a_damaged_copy_of_a_template_is_named(trained, monkeypatch):
    monkeypatch.chdir(trained)
    file = trained / "run" / "chat_template.json"
    if not file.exists():
        return  # a template that is not in files
    whole = file.read_text()
    try:
        for text, message in (("[]", "not an object"), ('{"sources": 3}', "damaged"), ("{", "not JSON")):
            file.write_text(text)
            with pytest.raises(ml.UserError, match=f"chat_template.json.*{message}"):
                ml.open_run("run").generate(messages=asks("Sea?"))
    finally:
        file.write_text(whole)


def test_samples_answer_as_in_training(trained):
    samples = [json.loads(line) for line in (trained / "run" / "samples.jsonl").read_text().splitlines()]
    assert [sample["text"] for sample in samples] == list(ANSWERS.values())
    assert samples[0]["prompt"] == asks("Sky?")


def test_the_harness_asks_and_compares_answers_as_in_training(run):
    from ml.training.evaluation.harness import HarnessModel

    settings = {"context": 96, "batch_size": 2, "precision": Float32(), "device": torch.device("cpu")}
    data = run._trainer.data
    adapter = HarnessModel(run.build(), data.tokenizer, data.separator, data.begin, data.chat, **settings)
    contexts = [adapter.apply_chat_template(asks(question)) for question in ANSWERS]
    requests = [SimpleNamespace(args=(context, {"until": [], "max_gen_toks": 60})) for context in contexts]
    assert adapter.generate_until(requests) == list(ANSWERS.values())
    choices = [SimpleNamespace(args=(contexts[0], answer)) for answer in ANSWERS.values()]
    found = adapter.loglikelihood(choices)
    assert [is_greedy for _, is_greedy in found] == [True, False, False]
    begun = adapter.apply_chat_template(asks("Sky?", "blue\n"), add_generation_prompt=False)
    assert adapter.generate_until([SimpleNamespace(args=(begun, {"max_gen_toks": 30}))]) == ["and wide"]


REFUSED = [
    (("--chat=a", "--prompt=b"), "different ways to ask"),
    (("--system=a", "--prompt=b"), "--system goes with --chat"),
    (("--chat= ",), "the question of --chat is empty"),
    (("--messages=nowhere.json",), "nowhere.json cannot be read"),
    (("--messages=bad.json",), "bad.json cannot be read"),
    (("--messages=object.json",), "object.json cannot be read: must be one of"),
    (("--messages=tool.json",), "role"),
    (("--messages=some.jsonl",), "some.jsonl, line 3, cannot be read: 'content' is missing"),
    (("--messages=broken.jsonl",), "broken.jsonl, line 2, cannot be read: Expecting"),
]


def test_what_cannot_be_asked_is_one_line(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    for name, text in (("bad", "["), ("object", "{}"), ("tool", '[{"role": "a<|im_end|>", "content": "x"}]')):
        (trained / f"{name}.json").write_text(text)
    good = '[{"role": "user", "content": "x"}]\n'
    (trained / "some.jsonl").write_text(good + '\n[{"role": "user"}]\n')
    (trained / "broken.jsonl").write_text(good + "[\n")
    for flags, message in REFUSED:
        assert main(["generate", "run", *flags]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error


def test_a_run_without_conversations_has_no_chat_template(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert main(["generate", "run", "--chat=Hi"]) == 2
    assert "has no chat template: it was not trained on conversations" in capsys.readouterr().err
