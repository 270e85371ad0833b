"""Sweep files: meaning and errors."""

import tomllib

import pytest

import ml
from ml.errors import UserError
from ml.sweeps.file import read_sweep
from ml.sweeps.gin_text import gin_text
from ml.sweeps.names import name_of, names_of

HEAD = "gin_file = 'recipes/tiny.gin'\n"


@pytest.fixture
def read(tmp_path):
    def read(text):
        (tmp_path / "sweep.toml").write_text(text)
        return read_sweep(tmp_path / "sweep.toml")

    return read


def statements(member):
    return [binding.text for binding in member.bindings]


def test_a_grid_is_every_combination_with_the_last_key_fastest(read):
    sweep = read(
        f'{HEAD}gin_bindings = ["Trainer.seed = 1"]\n'
        '[grid]\n"AdamW.learning_rate" = [1e-3, "3e-3"]\n"query/Linear.bias" = [true, false]'
    )
    assert [statements(member) for member in sweep.members] == [
        ["Trainer.seed = 1", f"AdamW.learning_rate = {rate}", f"query/Linear.bias = {bias}"]
        for rate in ("0.001", "0.003")
        for bias in ("True", "False")
    ]
    assert [member.name for member in sweep.members][:2] == [
        "learning_rate=0.001,query.Linear.bias=True",
        "learning_rate=0.001,query.Linear.bias=False",
    ]
    assert sweep.members[0].choices == {"learning_rate": "0.001", "query/Linear.bias": "True"}
    assert {member.gin_files for member in sweep.members} == {("recipes/tiny.gin",)}


def test_keys_may_be_unquoted_and_macros_are_keys(read):
    sweep = read(f"{HEAD}[grid]\nAdamW.learning_rate = [1e-3]\nAdamW.weight_decay = [0.1]\nWIDTH = [64]")
    assert statements(sweep.members[0]) == ["AdamW.learning_rate = 0.001", "AdamW.weight_decay = 0.1", "WIDTH = 64"]


def test_a_list_is_in_order_and_combined_with_the_whole_grid(read, tmp_path):
    (tmp_path / "mine.gin").touch()
    text = (
        f"{HEAD}[[list]]\nname = 'as it is'\n[[list]]\ngin_bindings = ['Trainer.seed = 1', 'Linear.bias = True']\n"
        "[[list]]\ngin_file = ['mine.gin']\n"
    )
    sweep = read(text)
    assert [member.name for member in sweep.members] == ["as_it_is", "seed=1,bias=True", "mine"]
    assert sweep.members[2].gin_files == ("recipes/tiny.gin", str(tmp_path / "mine.gin"))
    assert [dict(member.choices) for member in sweep.members] == [
        {"name": "as it is"},
        {"seed": "1", "bias": "True"},
        {"gin_file": str(tmp_path / "mine.gin")},
    ]
    both = read(f"{text}[grid]\nAdamW.learning_rate = [0.1, 0.2]")
    assert [member.name for member in both.members][:3] == [
        "as_it_is,learning_rate=0.1",
        "as_it_is,learning_rate=0.2",
        "seed=1,bias=True,learning_rate=0.1",
    ]
    assert statements(both.members[2]) == ["Trainer.seed = 1", "Linear.bias = True", "AdamW.learning_rate = 0.1"]


VALUES = {
    "1": "1",
    "1_000": "1000",
    "1e-3": "0.001",
    "'1e-3'": "0.001",
    "true": "True",
    "inf": "%math.inf",
    "-inf": "%math.minus_inf",
    "nan": "%math.nan",
    "'None'": "None",
    "'@Mamba2'": "@Mamba2",
    "'%WIDTH'": "%WIDTH",
    "\"'text'\"": "'text'",
    "\"['a.txt',  'b.txt']\"": "['a.txt', 'b.txt']",
    "[1, '@X', \"'a'\"]": "[1, @X, 'a']",
    "{a = 1, b = [2.5]}": "{'a': 1, 'b': [2.5]}",
    "'1e999'": "1e999",
}


@pytest.mark.parametrize(("toml", "gin"), VALUES.items())
def test_values_become_gin_text(toml, gin):
    assert gin_text(tomllib.loads(f"x = {toml}")["x"]) == gin


def test_values_of_every_kind_load(read):
    sweep = read(
        f'{HEAD}[grid]\n"Trainer.max_grad_norm" = [1, "None", inf]\n"TextFiles.paths" = ["[\'a\', \'b\']"]\n'
        '"DecoderBlock.mixer" = ["@Attention"]\n"Trainer.compile" = [true]'
    )
    for member in sweep.members:
        ml.load(member.gin_files, statements(member))


WRONG = {
    "no TOML": ("gin_file = ", r"cannot be read: Invalid value \(at"),
    "an unknown key": ("gin_fil = 'a'", r"sweep\.toml: there is no 'gin_fil'; did you mean 'gin_file'\? There are"),
    "nothing to vary": (HEAD, r"neither a \[grid\] nor a \[\[list\]\]"),
    "no configuration": ("[grid]\nA.x = [1]", "name one with gin_file"),
    "no list of values": (f"{HEAD}[grid]\nA.x = 1", r"\[grid\] A\.x must be a list of the values to take, not 1"),
    "an empty list": (f"{HEAD}[grid]\nA.x = []", r"\[grid\] A\.x must be a list of the values"),
    "an empty grid": (f"{HEAD}[grid]", r"\[grid\] must hold lists"),
    "a grid of something else": (f"{HEAD}grid = [1]", r"\[grid\] must hold lists"),
    "a value twice": (f"{HEAD}[grid]\nA.x = [1e-3, '0.001']", r"\[grid\] A\.x has 0\.001 twice"),
    "a string without its quotes": (f"{HEAD}[grid]\nA.x = ['cosine']", "'cosine' is no gin value; a string has quotes"),
    "a date": (f"{HEAD}[grid]\nA.x = [2026-01-01]", "gin has no date: 2026-01-01"),
    "the head of the file in the grid": (
        f"[grid]\nA.x = [1]\n{HEAD}",
        "gin_file stands in .grid.; it belongs to the head",
    ),
    "one bracket": (f"{HEAD}[list]\nname = 'a'", r"begins with \[\[list\]\], in two brackets"),
    "an empty entry": (f"{HEAD}[[list]]\n", r"list\[0\] is empty"),
    "an unknown key of an entry": (
        f"{HEAD}[[list]]\nbindings = 'a'",
        r"list\[0\]: there is no 'bindings'; did you mean",
    ),
    "a name that is none": (f"{HEAD}[[list]]\nname = 3", r"list\[0\]: name must be a text, not 3"),
    "bindings that are no texts": (f"{HEAD}gin_bindings = [1]", "gin_bindings must be a text or a list of texts, not"),
    "bindings of an entry": (f"{HEAD}[[list]]\ngin_bindings = [1]", r"list\[0\]: gin_bindings must be a text or"),
    "a switch that is none": (f"{HEAD}allow_unused_bindings = 1", "allow_unused_bindings must be true or false"),
    "a source that is none": (f"{HEAD}init_from = 1", "init_from must be the folder of a run"),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_an_error_is_reported_with_its_place(read, text, message):
    with pytest.raises(UserError, match=message):
        read(text)


def test_a_missing_or_binary_file_is_an_error(tmp_path):
    with pytest.raises(UserError, match="there is no sweep file"):
        read_sweep(tmp_path / "nowhere.toml")
    (tmp_path / "a.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot be read"):
        read_sweep(tmp_path / "a.toml")


def test_the_flags_that_all_members_share(read):
    sweep = read(f"{HEAD}gin_search_path = 'a'\ninit_from = 'b'\nallow_unused_bindings = true\n[grid]\nA.x = [1]")
    assert (sweep.gin_search_path, sweep.init_from, sweep.allow_unused_bindings) == (("a",), "b", True)


def test_names_are_valid_in_a_shell_and_a_file_system():
    assert name_of(["mixer=@Mamba2", "paths=['a/b.txt', \"c d\"]"]) == "mixer=Mamba2,paths=a.b.txt,c_d"
    assert name_of(["..", "/"]) not in (".", "..")
    assert not name_of(["-rf"]).startswith("-")
    assert len(name_of(["x" * 500])) <= 120
    assert name_of(["x" * 500]) != name_of(["x" * 501])


def test_equal_names_are_disambiguated_independently_of_the_others():
    first = names_of([["a b"], ["a_b"], ["A_B"], ["c"]])
    assert len({name.lower() for name in first}) == 4
    assert first[3] == "c"
    assert names_of([["a_b"], ["a b"]]) == [first[1], first[0]]
