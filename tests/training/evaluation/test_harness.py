"""The adapter of the lm-evaluation-harness against brute force, called directly and by tasks from local files."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from evaluated import nats_by_hand, small_model

from ml.data import ByteTokenizer
from ml.data.sequences.document_begin import Begin
from ml.data.sequences.document_separator import Separator
from ml.errors import UserError
from ml.models.generation import generate
from ml.models.sampling import Sampler
from ml.training import Float32

pytest.importorskip("lm_eval")
CONTEXT = 24
CHOICES = """
task: capitals
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {folder}/capitals.jsonl}}}}
validation_split: validation
output_type: multiple_choice
doc_to_text: "Capital of {{{{country}}}}:"
doc_to_choice: "{{{{cities}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}]
"""
PERPLEXITY = """
task: prose
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {folder}/prose.jsonl}}}}
validation_split: validation
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: word_perplexity}}, {{metric: bits_per_byte}}]
"""
GENERATION = """
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {folder}/sums.jsonl}}}}
validation_split: validation
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\x05"], max_gen_toks: 6, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""
CAPITALS = [
    {"country": "France", "cities": ["Paris", "Lyon", "a city that is far too long for the context"], "answer": 0},
    {"country": "Peru", "cities": ["Cusco", "Lima"], "answer": 1},
    {"country": "the long-named Republic of Nowhere", "cities": ["X", "Yy", "Zzz"], "answer": 2},
]
PROSE = ["Short.", "A longer text, which takes several windows of the model to be predicted whole."]


@pytest.fixture(scope="module")
def model():
    return small_model()


def adapter_of(model, separates):
    from ml.training.evaluation.harness import HarnessModel

    separator, cpu = Separator.of(ByteTokenizer(), None), torch.device("cpu")
    begin = Begin.of(ByteTokenizer(), separator, None, separates)
    settings = {"context": CONTEXT, "batch_size": 2, "precision": Float32(), "device": cpu}
    return HarnessModel(model, ByteTokenizer(), separator, begin, **settings)


@pytest.fixture
def adapter(model):
    return adapter_of(model, separates=False)


def request(*arguments):
    return SimpleNamespace(args=arguments)


def by_hand(model, before, text):
    """Log likelihood of the bytes of `text` after `before`, each from at most CONTEXT bytes; and is it greedy?"""
    tokens, found, is_greedy = [*before, *text], 0.0, True
    for place in range(len(before), len(tokens)):
        # All of a text that fits is predicted from what fits with it; of a longer one, window by window.
        if len(text) <= CONTEXT:
            begin = max(0, len(tokens) - 1 - CONTEXT)
        else:
            number = (place - len(before)) // CONTEXT
            end = min(len(before) + (number + 1) * CONTEXT, len(tokens)) - 1
            begin = end - CONTEXT if number else len(before) - 1
        nats, best = nats_by_hand(model, tokens[begin:place], tokens[place])
        found, is_greedy = found - nats, is_greedy and best == tokens[place]
    return found, is_greedy


def test_likelihoods_are_those_of_single_tokens_whatever_else_is_asked(adapter, model):
    likeliest = bytes(int(t) for t in generate(model, [list(b"the start")], 4, Sampler(0.0), num_choices=128))
    pairs = [
        ("The start", " of it"),
        ("", "nothing before"),
        ("with a space ", "behind"),
        ("x" * 40, "y" * 10),
        ("x", "z" * 60),
        ("the start", likeliest.decode()),
        ("nothing", ""),
    ]
    found = adapter.loglikelihood([request(*pair) for pair in pairs])
    for (before, text), (likelihood, is_greedy) in zip(pairs, found, strict=True):
        spaces = " " * before.endswith(" ")  # the harness counts them to what follows
        expected = by_hand(model, before.strip().encode() or b"\0", (spaces + text).encode())
        assert likelihood == pytest.approx(expected[0], rel=1e-5)
        assert is_greedy == expected[1]
    assert adapter.loglikelihood([request(*pairs[2])])[0] == pytest.approx(found[2])


def test_every_text_starts_with_the_begin_token_of_documents(model):
    adapter = adapter_of(model, separates=True)
    pairs = [("The start", " of it"), ("", "nothing before")]
    found = adapter.loglikelihood([request(*pair) for pair in pairs])
    for (before, text), (likelihood, _) in zip(pairs, found, strict=True):
        assert likelihood == pytest.approx(by_hand(model, b"\0" + before.encode(), text.encode())[0], rel=1e-5)
    (text,) = adapter.generate_until([request("one", {"max_gen_toks": 6})])
    tokens = np.array([int(token) for token in generate(model, [list(b"\0one")], 6, Sampler(0.0))])
    assert text == ByteTokenizer().decode(tokens).partition("\0")[0]


def test_rolling_likelihoods_predict_every_token_once(adapter, model):
    found = adapter.loglikelihood_rolling([request(text) for text in PROSE])
    for text, likelihood in zip(PROSE, found, strict=True):
        assert likelihood == pytest.approx(by_hand(model, b"\0", text.encode())[0], rel=1e-5)


def test_generation_is_that_of_the_model_and_loses_the_beginning_of_what_is_too_long(adapter, model):
    prompts = ["one", "a prompt that is longer than the context of the model", "three"]
    options = [{"until": "e", "max_gen_toks": 6}, {"until": ["\n"], "max_gen_toks": 6}, {"max_gen_toks": 3}]
    found = adapter.generate_until([request(p, o) for p, o in zip(prompts, options, strict=True)])
    for prompt, option, text in zip(prompts, options, found, strict=True):
        length = option["max_gen_toks"]
        kept = list(prompt.encode())[-(CONTEXT - length) :]
        tokens = np.array([int(token) for token in generate(model, [kept], length, Sampler(0.0))])
        expected = ByteTokenizer().decode(tokens)
        for stop in [*option.get("until", []), "\0"]:
            expected = expected.partition(stop)[0]
        assert text == expected


def test_an_unsupported_request_of_a_task_is_an_error(adapter):
    with pytest.raises(UserError, match="generates with num_beams, which is not supported"):
        adapter.generate_until([request("x", {"num_beams": 4})])
    from ml.training.evaluation.harness import HarnessModel

    options = {"context": 8, "batch_size": 1, "precision": Float32(), "device": torch.device("cpu")}
    separator = Separator.of(ByteTokenizer(), "")
    with pytest.raises(UserError, match="no separator or begin token"):
        HarnessModel(None, ByteTokenizer(), separator, Begin.after(separator), **options)


@pytest.fixture
def tasks(tmp_path, monkeypatch, model):
    """A folder with three tasks and their data; nothing is asked of a network."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    prompt = list(b"2 + 2 =")
    answer = bytes(int(t) for t in generate(model, [prompt], 6, Sampler(0.0))).decode("utf-8", "replace")
    answer = answer.partition("\0")[0].partition("\x05")[0]
    sums = [{"question": "2 + 2 =", "answer": answer}, {"question": "1 + 1 =", "answer": "no such thing"}]
    rows = {"capitals": CAPITALS, "prose": [{"text": text} for text in PROSE], "sums": sums}
    for name, text in {"capitals": CHOICES, "prose": PERPLEXITY, "sums": GENERATION}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[name]))
        (tmp_path / f"{name}.yaml").write_text(text.format(folder=tmp_path))
    return tmp_path


@pytest.mark.slow
def test_the_harness_finds_what_brute_force_finds(adapter, model, tasks):
    import lm_eval
    from lm_eval.tasks import TaskManager

    names = ["capitals", "prose", "sums"]
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    found = lm_eval.simple_evaluate(adapter, tasks=names, task_manager=manager, bootstrap_iters=0)["results"]
    right = 0
    for row in CAPITALS:
        before = f"Capital of {row['country']}:".encode()
        costs = [by_hand(model, before, f" {city}".encode())[0] for city in row["cities"]]
        right += costs.index(max(costs)) == row["answer"]
    assert found["capitals"]["acc,none"] == pytest.approx(right / len(CAPITALS))
    nats = -sum(by_hand(model, b"\0", text.encode())[0] for text in PROSE)
    num_bytes = sum(len(text.encode()) for text in PROSE)
    assert found["prose"]["bits_per_byte,none"] == pytest.approx(nats / np.log(2) / num_bytes, rel=1e-5)
    assert found["sums"]["exact_match,none"] == pytest.approx(0.5)
