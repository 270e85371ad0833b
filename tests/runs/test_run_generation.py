"""`Run.generate` against the command line and against greedy decoding by hand."""

import itertools
import json

import pytest
import torch

from ml.training import Trainer

OPTIONS = {
    "plain": {},
    "seed": {"seed": 7},
    "cold": {"temperature": 0.0},
    "top_k": {"top_k": 3, "temperature": 2.0},
    "top_p": {"top_p": 0.4},
    "min_p": {"min_p": 0.5},
    "samples": {"num_samples": 3},
    "step": {"step": 2},
    "stop": {"stop": ["1", "e"], "temperature": 1.5},
}


def as_flags(options):
    pairs = [(name, one) for name, value in options.items() for one in (value if isinstance(value, list) else [value])]
    return [f"--{name}={value}" for name, value in pairs]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_texts_are_those_of_the_command_line(run, juniper, options):
    prompts = ["3 times ", ""]
    printed = juniper(
        "generate", "run", "--json", "--num_tokens=12", *(f"--prompt={p}" for p in prompts), *as_flags(options)
    )
    expected = [json.loads(line)["text"] for line in printed.splitlines()]
    assert run.generate(prompts, num_tokens=12, **options) == expected
    assert len(expected) == 2 * options.get("num_samples", 1)


def test_generation_from_the_weight_average_equals_the_command_line(run, juniper):
    line = juniper("generate", "run", "--json", "--prompt=3", "--average", "--num_tokens=30")
    average, last = (run.generate("3", num_tokens=30, average=a) for a in (True, False))
    assert json.loads(line)["text"] == average != last


def test_temperature_0_takes_the_most_likely_token_each_time(run):
    model, tokens = run.build(), list(b"3 times ")
    with torch.no_grad():
        for _ in range(10):
            tokens.append(model(torch.tensor([tokens]))[0, -1].argmax().item())
    assert run.generate("3 times ", num_tokens=10, temperature=0.0) == run.tokenizer.decode(tokens[8:])


def test_one_prompt_gives_a_text_and_several_give_a_list(run):
    alone = run.generate("3", num_tokens=5, seed=1)
    assert isinstance(alone, str)
    assert run.generate(["3"], num_tokens=5, seed=1) == [alone]
    samples = run.generate("3", num_tokens=5, seed=1, num_samples=2)
    assert samples[0] == alone
    assert len(samples) == 2


def test_one_stop_text_need_not_be_in_a_list(run):
    whole = run.generate("3", num_tokens=12, temperature=0.0)
    assert run.generate("3", num_tokens=12, temperature=0.0, stop=whole[4:6]) == whole[: whole.index(whole[4:6])]


def test_a_text_is_shown_as_it_grows(run):
    seen = []
    text = run.generate("3", num_tokens=8, temperature=0.0, show=lambda row, so_far: seen.append((row, so_far)))
    assert {row for row, _ in seen} == {0}
    assert all(later.startswith(earlier) for (_, earlier), (_, later) in itertools.pairwise(seen))
    assert text.startswith(seen[-1][1])


def test_the_model_of_a_checkpoint_is_loaded_once_in_a_row(run, monkeypatch):
    built, allocate = [], Trainer.allocate
    monkeypatch.setattr(Trainer, "allocate", lambda *arguments: built.append(arguments) or allocate(*arguments))
    first = run.generate("3", num_tokens=4)
    assert run.generate("3", num_tokens=4) == first
    run.generate("3", num_tokens=4, step=2)
    run.evaluate(step=2)
    assert len(built) == 2
    run.generate("3", num_tokens=4)
    assert len(built) == 3


def test_evaluation_leaves_dropout_disabled(run):
    before = run.generate("3", num_tokens=20, temperature=0.0)
    run.evaluate()
    assert run.generate("3", num_tokens=20, temperature=0.0) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_p": 2.0}, "^top_p cannot be 2.0$"),
        ({"num_samples": 0}, "^num_samples cannot be 0$"),
        ({"stop": ["a", ""]}, r"^stop cannot be \['a', ''\]$"),
        ({"step": 3}, "there is no checkpoint of step 3"),
        ({"prompts": []}, "there is no prompt"),
        ({"prompts": "\ud800"}, "the prompt is not UTF-8"),
    ],
)
def test_a_wrong_argument_is_a_user_error_in_the_words_of_python(run, options, message):
    with pytest.raises(ValueError, match=message):
        run.generate(**{"prompts": "3", **options})
