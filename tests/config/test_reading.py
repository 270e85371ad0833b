"""File lookup, files included several times, and suppressed follow-up errors."""

import pytest
from small_model import SMALL, build_on_meta, values

from ml.config import ConfigError, configurable, load
from ml.config.grammar import statements


def write(folder, **files: str):
    """Writes `name="text"` to `name.gin`, and returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.gin").write_text(text)
    return folder


def sizes(config) -> set[str]:
    return set(values(config, "GatedMLP", "intermediate_size").values())


BASE = "GatedMLP.intermediate_size = 64\n"


def test_a_base_included_by_two_files_does_not_override_the_first_of_them(load_model, tmp_path):
    write(
        tmp_path,
        base=BASE,
        a="include 'base.gin'\nGatedMLP.intermediate_size = 96\n",
        b="include 'base.gin'\nLinear.bias = True\n",
    )
    config = load_model(files=[tmp_path / "a.gin", tmp_path / "b.gin"])
    assert sizes(config) == {"96"}
    assert set(values(config, "Linear", "bias").values()) == {"True"}


def test_a_file_is_identified_across_different_paths(load_model, tmp_path, monkeypatch):
    write(tmp_path / "inner", base=BASE, a="include '../inner/base.gin'\nGatedMLP.intermediate_size = 96\n")
    (tmp_path / "link.gin").symlink_to(tmp_path / "inner" / "base.gin")
    write(tmp_path, b=f"include '{tmp_path}/inner/base.gin'\ninclude 'link.gin'\nLinear.bias = True\n")
    monkeypatch.chdir(tmp_path)
    assert sizes(load_model(files=["inner/a.gin", "b.gin"])) == {"96"}


def test_nested_includes_are_read_once_each(tmp_path, monkeypatch):
    levels = {f"level_{n}": f"include 'level_{n - 1}.gin'\n" * 2 for n in range(1, 41)}
    write(tmp_path, level_0=SMALL, **levels)
    opened = []
    read_text = type(tmp_path).read_text
    monkeypatch.setattr(
        type(tmp_path), "read_text", lambda path, *a, **k: opened.append(path) or read_text(path, *a, **k)
    )
    load(tmp_path / "level_40.gin", root=build_on_meta)
    assert len([path for path in opened if path.suffix == ".gin"]) == 41


@pytest.mark.parametrize(
    ("names", "message"),
    {
        "twice": (["base", "base"], "base.gin is given twice, and a file is read once"),
        "after another": (["base", "a", "base"], "base.gin is given twice, and a file is read once"),
        "after one that includes it": (
            ["a", "base"],
            "base.gin is already included (a.gin:1), and a file is read once",
        ),
    }.values(),
)
def test_a_file_named_after_it_was_read_is_an_error(problems, tmp_path, monkeypatch, names, message):
    write(tmp_path, base=BASE, a="include 'base.gin'\nLinear.bias = True\n")
    monkeypatch.chdir(tmp_path)
    (found,) = problems(files=[f"{name}.gin" for name in names])
    assert message in found


def test_a_shipped_file_includes_shipped_files_only(load_model, tmp_path, monkeypatch):
    shipped = write(tmp_path / "shipped", base=BASE)
    write(shipped / "recipes", tiny="include 'base.gin'\n", mini="include 'tiny.gin'\n")
    here = write(tmp_path / "here", base="GatedMLP.intermediate_size = 96\n", tiny="GatedMLP.intermediate_size = 128\n")
    write(here / "recipes", own="include 'base.gin'\n")
    monkeypatch.chdir(here)
    search = write(tmp_path / "search", base="GatedMLP.intermediate_size = 160\n")
    for name, size in {"recipes/tiny.gin": "64", "recipes/mini.gin": "64", "recipes/own.gin": "96"}.items():
        assert sizes(load_model(files=[name], shipped=shipped, search_path=[search])) == {size}, name


def test_locations_distinguish_a_shipped_file_from_a_local_one(load_model, tmp_path, monkeypatch):
    shipped = write(tmp_path / "shipped", base=BASE)
    write(tmp_path / "here" / "configs", own="include 'base.gin'\nRMSNorm.epsilon = 0.5\n", base="Linear.bias = True\n")
    monkeypatch.chdir(tmp_path / "here")
    config = load_model(files=[shipped / "base.gin", "configs/own.gin"], shipped=shipped)
    assert {r.location for r in config.records() if r.explicit and r.location.endswith((":1", ":2"))} >= {
        "configs/base.gin:1",
        "./configs/base.gin:1",
        "./configs/own.gin:2",
    }


def test_a_byte_order_mark_is_ignored(load_model, tmp_path):
    (tmp_path / "marked.gin").write_bytes(b"\xef\xbb\xbf" + BASE.encode())
    assert sizes(load_model(files=[tmp_path / "marked.gin"])) == {"64"}


BAD_BLOCKS = {
    "word": "Attention:\n    head_size = oops\n    num_heads = 2\n",
    "at the end": "Attention:\n    num_heads = 2\n    head_size = oops\n",
    "no value": "Attention:\n  num_heads = 2\n  head_size\n  use_rotary = False\n",
    "open bracket": "Attention:\n    head_size = [1,\n    num_heads = 2\n",
    "indentation": "Attention:\n    num_heads = 2\n      head_size = 8\n",
    "comments": "Attention:  # of all\n    # first\n    head_size = $\n\n    # then\n    num_heads = 2  # two\n",
}


@pytest.mark.parametrize("text", BAD_BLOCKS.values(), ids=BAD_BLOCKS)
def test_a_valid_line_in_a_block_with_an_invalid_one_counts(text):
    found = list(statements(text + "Linear.bias = False\n"))
    read = [(line, s.selector, s.arg_name, s.value) for line, s in found if hasattr(s, "arg_name")]
    numbers = [number for number, line in enumerate(text.splitlines(), 1) if "num_heads" in line]
    assert (numbers[0], "Attention", "num_heads", 2) in read
    assert read[-1] == (len(text.splitlines()) + 1, "Linear", "bias", False)
    (fault,) = [line for line, s in found if hasattr(s, "message")]
    assert "head_size" in text.splitlines()[fault - 1] or "$" in text.splitlines()[fault - 1]


REQUIRED = "LanguageModel.hidden_size = 32\ndecoder/Repeat.num_blocks = 2\nAttention.num_heads = 4\n"
ONE_FAULT = {
    "missing file": ("include 'no.gin'", "there is no configuration file"),
    "missing module": ("import no_such_module", "there is no module"),
    "bad value": ("LanguageModel.vocab_size = oops", "oops is not a value"),
    "bad value in a block": ("LanguageModel:\n  vocab_size = oops", "oops is not a value"),
    "open bracket": ("LanguageModel.vocab_size = [", "cannot be read"),
    "wrong type": ("LanguageModel.vocab_size = '64'", "LanguageModel.vocab_size must be int"),
    "typing error in the parameter": ("LanguageModel.vocb_size = 64", "has no parameter 'vocb_size'"),
    "typing error in the name": ("LanguageMdel.vocab_size = 64", "there is no configurable 'LanguageMdel'"),
    "unknown macro": ("LanguageModel.vocab_size = %SOMETHING", "there is no macro or constant %SOMETHING"),
    "unknown macro in a macro": (
        "SIZE = %SOMETHING\nLanguageModel.vocab_size = %SIZE",
        "no macro or constant %SOMETHING",
    ),
    "bad macro": ("SIZE = oops\nLanguageModel.vocab_size = %SIZE", "oops is not a value"),
    "no encoding": ("include 'binary.gin'", "cannot read"),
}


@pytest.mark.parametrize(("text", "message"), ONE_FAULT.values(), ids=ONE_FAULT)
def test_one_mistake_gives_one_error(tmp_path, text, message):
    (tmp_path / "binary.gin").write_bytes(b"\xff\xfe\x00")
    write(tmp_path, main=REQUIRED + text + "\n")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "main.gin", root=build_on_meta)
    (problem,) = caught.value.problems
    assert message in str(problem)


UNSELECTED = {
    "unknown part": "DecoderBlock.mlp = @NoSuchMLP\nMLP.intermediate_size = 64",
    "typing error": "DecoderBlock.mpl = @MLP\nMLP.intermediate_size = 64",
    "syntax": "DecoderBlock.mlp = @@MLP\nMLP.intermediate_size = 64",
    "macro": "PART = @NoSuchMLP\nDecoderBlock.mlp = %PART\nMLP.intermediate_size = 64",
    "macro that only a lost line reads": "SIZE = 64\nGatedMLP.intermediate_size = [%SIZE",
    "missing file": "include 'no.gin'\nMLP.intermediate_size = 64\nSIZE = 3\nlayer/Linear.bias = True",
}


@pytest.mark.parametrize("text", UNSELECTED.values(), ids=UNSELECTED)
def test_an_option_of_a_part_unselected_by_an_error_is_no_second_error(problems, text):
    assert len(problems(text)) == 1


def test_independent_errors_are_all_reported(problems):
    found = problems(
        "Linear.bias = oops\nRMSNorm.epsilon = 'x'\nMLP.intermediate_size = 64\nSIZE = 3\nAttention.num_kv_heads = 3"
    )
    for message in ("oops is not", "RMSNorm.epsilon must", "MLP is not built", "macro 'SIZE'", "must divide num_heads"):
        assert any(message in problem for problem in found), message
    assert len(found) == 5


class Tool:
    """An object without gin text."""


@configurable
class Workshop:
    def __init__(self, tool: object = Tool(), name: str = "x"):
        self.tool = tool


def test_a_default_without_text_form_is_an_error_only_if_used():
    with pytest.raises(ConfigError, match=r"Workshop.tool \(its default\)"):
        load(bindings="Workshop.name = 'y'", root=Workshop)
    config = load(bindings="Workshop.tool = 'hammer'", root=Workshop)
    (record,) = [record for record in config.records() if record.parameter == "tool"]
    assert (record.value, [origin.value for origin in record.overrode]) == ("'hammer'", ["<Tool>"])
