"""Values beyond the limits: one clear error each, no traceback."""

import pytest

DEEP = "[" * 5000 + "]" * 5000
CHAIN = "\n".join([f"m{i} = %m{i + 1}" for i in range(2000)])
DOUBLED = "\n".join([f"m{i} = [%m{i + 1}, %m{i + 1}]" for i in range(30)])
NESTED = "[" * 40 + "{}" + "]" * 40

CASES = {
    "float that overflows": ("Linear.lr_scale = 1e400", "Linear.lr_scale has a number that exceeds the range of float"),
    "float in a list": ("Mamba2.dt_limit = (0.0, -1e999)", "Mamba2.dt_limit has a number that exceeds"),
    "float in a macro": ("LR = 1e400", "macro LR has a number that exceeds the range of float"),
    "integer for an integer": (f"Attention.head_size = {2**70}", "Attention.head_size must fit in 64 bits"),
    "smallest integer": (f"Attention.head_size = {-(2**63) - 1}", "Attention.head_size must fit in 64 bits"),
    "integer for a float": (f"Linear.lr_scale = {10**400}", "Linear.lr_scale must be at most 1.8e308"),
    "integer of many digits": (f"Linear.lr_scale = {'1' * 5000}", "a number of 5,000 digits is too large"),
    "lists": (f"Linear.bias = {DEEP}", "its brackets are nested more than 64 levels deep"),
    "few lists": (f"Linear.bias = {'[' * 70}{']' * 70}", "Linear.bias is nested more than 64 levels deep"),
    "tuples": (f"Linear.bias = {'(' * 5000}1{')' * 5000}", "its brackets are nested more than 64 levels deep"),
    "dicts": ("Linear.bias = " + "{1: " * 3000 + "1" + "}" * 3000, "its brackets are nested more than 64 levels deep"),
    "macros": (f"{CHAIN}\nm2000 = 1\nLinear.bias = %m0", "at most 64 levels deep"),
    "macros that double": (f"{DOUBLED}\nm30 = 1\nLinear.bias = %m0", "10,000 macros in total"),
    "macros that nest": (f"a = {NESTED.format(1)}\nLinear.bias = {NESTED.format('%a')}", "at most 64 levels"),
    "range": (f"block_0_to_{'9' * 5000}/Linear.bias = True", "there is no scope"),
    "index": (f"block_{'9' * 5000}/Linear.bias = True", "there is no scope"),
    "scopes": ("a/" * 5000 + "Linear.bias = True", "there is no scope 'a' in the model"),
    "hidden size": (f"LanguageModel.hidden_size = {2**40}", "LanguageModel.hidden_size must be at most 2,147,483,647"),
    "vocabulary": (f"LanguageModel.vocab_size = {2**40}", "LanguageModel.vocab_size must be at most 2,147,483,647"),
    "number of blocks": (f"decoder/Repeat.num_blocks = {2**40}", "Repeat.num_blocks must be at most 65,536"),
    "whole tensor": (
        f"LanguageModel.vocab_size = {2**31 - 1}\nLanguageModel.hidden_size = {2**20}",
        "Parameter.shape, which the parent determines, is (2147483647, 1048576)",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_values_too_large_or_too_deep_are_errors_with_their_place(problems, name):
    binding, message = CASES[name]
    found = problems(binding)
    assert any(message in problem for problem in found), found
    assert all(len(problem) < 12_000 for problem in found)
    if name != "whole tensor":
        assert any(problem.startswith("--gin_bindings[1]") for problem in found)


def test_a_long_statement_is_truncated_in_messages(problems):
    (problem,) = problems(f"Linear.bias = {DEEP}")
    assert "... (10,014 characters)" in problem
    assert len(problem) < 600


@pytest.mark.parametrize(
    ("binding", "value"),
    [
        ("Linear.lr_scale = 1e300", "1e+300"),
        (f"Linear.lr_scale = {2**70}", repr(float(2**70))),
        ("m0 = %m1\nm1 = %m2\nm2 = 0.5\nLinear.lr_scale = %m0", "0.5"),
    ],
)
def test_values_within_the_limits_are_accepted(load_model, binding, value):
    config = load_model(binding)
    assert value in {r.value for r in config.records() if (r.configurable, r.parameter) == ("Linear", "lr_scale")}
