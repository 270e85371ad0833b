"""Grammar: plain gin text has gin's meaning; a file can be included under a scope."""

from pathlib import Path

import pytest
from gin import config_parser
from small_model import values

from ml.config.syntax import Assignment, Include, Parser

SHIPPED = sorted((Path(__file__).parents[2] / "configs").rglob("*.gin"))

PLAIN = """
# a comment
from os import path as p
import json
a/b/c.d.e = [1, -2, (3,), (4), ('x'
  'y'), {'k': -1.5e-3, 2: None}]
Block.Name:   # a comment

  first = @x/y.Z()
  # another
  second = %scope/some.macro
include 'other.gin'
MACRO = %a.b.C
x = -7
y = {
  @a: %b,
}
z = 1j
"""


class Delegate(config_parser.ParserDelegate):
    def configurable_reference(self, scoped_configurable_name, evaluate):
        return ("reference", scoped_configurable_name, evaluate)

    def macro(self, macro_name):
        return ("macro", macro_name)


def plain(statement) -> tuple:
    """Returns a statement of either parser in a common form."""
    if isinstance(statement, Assignment):
        assert (statement.entries, statement.operator) == ((), "=")
        kind = (statement.scope, statement.selector, statement.arg_name, statement.value)
    elif isinstance(statement, Include):
        assert statement.scope == ()
        kind = (statement.filename,)
    else:
        kind = tuple(statement)[:-1]
    return (*kind, statement.location.line_num)


@pytest.mark.parametrize("text", [PLAIN, *(path.read_text() for path in SHIPPED)])
def test_plain_gin_text_is_parsed_as_by_gin(text):
    ours, theirs = list(Parser(text, Delegate())), list(config_parser.ConfigParser(text, Delegate()))
    assert [plain(statement) for statement in ours] == [plain(statement) for statement in theirs]
    assert len(theirs) > 0


def test_the_shipped_files_are_found():
    assert len(SHIPPED) > 5


@pytest.fixture
def files(tmp_path):
    (tmp_path / "adapters.gin").write_text(
        "RATE = 0.5\n\nLinear.lr_scale = %RATE\nquery/Linear:\n  bias = False\ninclude 'more.gin'\n"
    )
    (tmp_path / "more.gin").write_text("key/Linear.bias = False\nDecoderBlock.mlp = @wide/GatedMLP\n")
    (tmp_path / "wide.gin").write_text("wide/GatedMLP.intermediate_size = 96\n")
    return tmp_path


def test_an_include_under_a_scope_prepends_it_to_each_binding(load_model, files):
    main = files / "main.gin"
    main.write_text("include 'adapters.gin' under 'decoder/block_0_to_1'\ninclude 'wide.gin' under 'block_1'\n")
    config = load_model(files=[main])
    bias = values(config, "Linear", "bias")
    without = {path for path, value in bias.items() if value == "False"}
    assert without == {f"decoder/block_{index}/mixer/{name}" for index in (0, 1) for name in ("query", "key")}
    scales = values(config, "Linear", "lr_scale")
    assert {path for path, value in scales.items() if value == "0.5"} == {
        path for path in scales if path.startswith(("decoder/block_0/", "decoder/block_1/"))
    }
    sizes = values(config, "GatedMLP", "intermediate_size")
    assert {place.removeprefix("decoder/"): size for place, size in sizes.items() if place < "decoder/block_3"} == {
        "block_0/mlp/wide": "None",
        "block_1/mlp/wide": "96",
        "block_2/mlp": "None",
    }


def test_an_include_under_a_scope_equals_explicit_scopes(load_model, files):
    under = load_model("include 'adapters.gin' under 'block_1'", search_path=[files])
    written = load_model(
        "RATE = 0.5\nblock_1/Linear.lr_scale = %RATE\nblock_1/query/Linear.bias = False",
        "block_1/key/Linear.bias = False",
        "block_1/DecoderBlock.mlp = @wide/GatedMLP",
    )
    assert under.operative == written.operative


def test_locations_are_those_of_the_included_file(load_model, problems, files):
    config = load_model("include 'adapters.gin' under 'decoder/block_0'", search_path=[files])
    (scale,) = {r.location for r in config.records() if (r.parameter, r.value) == ("lr_scale", "0.5")}
    assert scale.endswith("adapters.gin:3")
    (files / "wide.gin").write_text("\nLinear.biass = 1\n")
    (found,) = problems("include 'wide.gin' under 'decoder'", search_path=[files])
    assert "wide.gin:2: Linear has no parameter 'biass'" in found


def test_an_unknown_scope_is_an_error_of_each_binding(problems, files):
    found = problems(
        "include 'wide.gin' under 'block_9'\nblock_2/DecoderBlock.mlp = @wide/GatedMLP", search_path=[files]
    )
    assert any("wide.gin:1: there is no scope 'block_9' in the model" in problem for problem in found)


def test_one_file_can_be_included_under_two_scopes(load_model, files):
    (files / "more.gin").write_text("Linear.bias = False\n")
    config = load_model("include 'more.gin' under 'query'\ninclude 'more.gin' under 'key'", search_path=[files])
    bias = values(config, "Linear", "bias")
    assert {path.split("/")[-1] for path, value in bias.items() if value == "False"} == {"query", "key"}


def test_a_singleton_keeps_its_name_under_a_scope(load_model, files):
    (files / "more.gin").write_text(
        "shared/gin.singleton.constructor = @normal\nLinear.weight_initialization = @normal\n"
    )
    text = (
        "include 'more.gin' under 'query'\nkey/Linear.weight_initialization = %NORMAL\nNORMAL = @shared/gin.singleton"
    )
    config = load_model(text, search_path=[files], allow_unused_bindings=True)
    assert "shared/singleton.constructor = @normal" in config.text


def test_a_saved_operative_config_cannot_be_included_under_a_scope(load_model, problems, files):
    (files / "saved.gin").write_text(load_model().operative)
    found = problems("include 'saved.gin' under 'decoder'", search_path=[files])
    assert any("an operative config cannot be included under a scope" in problem for problem in found)


MISTAKES = {
    "no scope": ("include 'more.gin' under", "Expected a scope as string after 'under'."),
    "a bare scope": ("include 'more.gin' under query", "query is not a value: write 'query' for a string"),
    "no name of a scope": ("include 'more.gin' under 'a//b'", "'a//b' is not a scope"),
    "another word": ("include 'more.gin' below 'a'", "Expected newline."),
}


@pytest.mark.parametrize(("text", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_an_include_is_one_error_with_its_place(problems, files, text, message):
    (found,) = problems(text, search_path=[files])
    assert found.startswith("--gin_bindings[1]: ")
    assert message in found
