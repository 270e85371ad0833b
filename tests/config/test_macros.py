"""Macros: source and location of values from macros, overridden values, and error messages."""

import re

import pytest
from small_model import SMALL, build_on_meta, record_of, values

from ml.config import ConfigError, load

EPSILON = "RMSNorm.epsilon = %EPSILON\n"
PATH = "decoder/block_0/mixer_norm"


def load_files(folder, files: dict[str, str], *flags: str):
    for name, text in files.items():
        (folder / name).write_text(text)
    return load([folder / name for name in files], [SMALL, *flags], root=build_on_meta)


def told(folder, record):
    """Returns value, source and location of the current value and of those it overrode, latest first."""
    chain = [(record.value, record.source, record.location)]
    chain += [(o.value, o.source, o.location) for o in reversed(record.overrode)]
    return [(value, source, location.replace(f"{folder.as_posix()}/", "")) for value, source, location in chain]


DEFAULT = ("1e-05", "default", "")
CASES = {
    "defined once": ({"a.gin": "EPSILON = 1e-3\n" + EPSILON}, (), [("0.001", "file", "a.gin:2"), DEFAULT]),
    "read before it is defined": ({"a.gin": EPSILON + "EPSILON = 1e-3"}, (), [("0.001", "file", "a.gin:1"), DEFAULT]),
    "defined by a flag alone": (
        {"a.gin": EPSILON},
        ["EPSILON = 1e-4"],
        [("0.0001", "flag", "a.gin:1 via --gin_bindings[1]"), DEFAULT],
    ),
    "overridden by a flag": (
        {"a.gin": "EPSILON = 1e-3\n" + EPSILON},
        ["EPSILON = 1e-4"],
        [("0.0001", "flag", "a.gin:2 via --gin_bindings[1]"), ("0.001", "file", "a.gin:2"), DEFAULT],
    ),
    "overridden by a file and then by two flags": (
        {"a.gin": "EPSILON = 1e-3\n" + EPSILON, "b.gin": "EPSILON = 2e-3"},
        ["EPSILON = 3e-3", "EPSILON = 4e-3"],
        [
            ("0.004", "flag", "a.gin:2 via --gin_bindings[2]"),
            ("0.003", "flag", "a.gin:2 via --gin_bindings[1]"),
            ("0.002", "file", "a.gin:2 via b.gin:1"),
            ("0.001", "file", "a.gin:2"),
            DEFAULT,
        ],
    ),
    "redefined before it was read": (
        {"a.gin": "EPSILON = 1e-3\nEPSILON = 2e-3\n" + EPSILON},
        (),
        [("0.002", "file", "a.gin:3"), DEFAULT],
    ),
    "at the end of a chain": (
        {"a.gin": "SMALLEST = 1e-3\nEPSILON = %SMALLEST\n" + EPSILON},
        ["SMALLEST = 1e-4"],
        [("0.0001", "flag", "a.gin:3 via --gin_bindings[1]"), ("0.001", "file", "a.gin:3"), DEFAULT],
    ),
    "a chain cut short, whose end is then redefined for nothing": (
        {"a.gin": "SMALLEST = 1e-3\nEPSILON = %SMALLEST\n" + EPSILON + "LayerNorm.epsilon = %SMALLEST"},
        ["EPSILON = 1e-4", "SMALLEST = 1e-2", "head/LanguageModelHead.normalization = @LayerNorm"],
        [("0.0001", "flag", "a.gin:3 via --gin_bindings[1]"), ("0.001", "file", "a.gin:3"), DEFAULT],
    ),
    "beaten by a binding of the same key": (
        {"a.gin": "EPSILON = 1e-3\n" + EPSILON},
        ["EPSILON = 1e-4", "RMSNorm.epsilon = 1e-6", "head/RMSNorm.epsilon = %EPSILON"],
        [
            ("1e-06", "flag", "--gin_bindings[2]"),
            ("0.0001", "flag", "a.gin:2 via --gin_bindings[1]"),
            ("0.001", "file", "a.gin:2"),
            DEFAULT,
        ],
    ),
}


@pytest.mark.parametrize(("files", "flags", "expected"), CASES.values(), ids=CASES)
def test_a_value_has_the_source_of_the_macro_definition(tmp_path, files, flags, expected):
    assert told(tmp_path, record_of(load_files(tmp_path, files, *flags), PATH, "epsilon")) == expected


def test_a_constructor_from_a_macro_has_the_source_of_the_definition(tmp_path):
    config = load_files(tmp_path, {"a.gin": "PART = @GatedMLP\nDecoderBlock.mlp = %PART"}, "PART = @MLP")
    assert told(tmp_path, record_of(config, "decoder/block_0", "mlp")) == [
        ("@MLP", "flag", "a.gin:2 via --gin_bindings[1]"),
        ("@GatedMLP", "file", "a.gin:2"),
        ("@GatedMLP", "default", ""),
    ]


def test_a_value_that_contains_a_macro_has_the_source_of_the_definition(tmp_path):
    text = "PART = @DecoderBlock\nPattern.blocks = {'a': %PART}\nPattern.pattern = ['a']\nPattern.num_blocks = 1\n"
    flags = ["PART = @wide/DecoderBlock", "wide/DecoderBlock.dropout = 0.1", "LanguageModel.decoder = @Pattern"]
    config = load_files(tmp_path, {"a.gin": text}, *flags)
    assert told(tmp_path, record_of(config, "decoder", "blocks")) == [
        ("{'a': @wide/DecoderBlock}", "flag", "a.gin:2 via --gin_bindings[1]"),
        ("{'a': @DecoderBlock}", "file", "a.gin:2"),
    ]


def test_a_redefined_macro_changes_neither_specificity_nor_order(tmp_path):
    first = {"a.gin": "EPSILON = 1e-3\nmixer_norm/" + EPSILON, "b.gin": "block_0_to_2/RMSNorm.epsilon = 1e-6"}
    found = values(load_files(tmp_path, first, "EPSILON = 1e-4"), "RMSNorm", "epsilon")
    assert found["decoder/block_0/mixer_norm"] == "0.0001"  # deeper on the path than the range
    assert found["decoder/block_0/mlp_norm"] == "1e-06"
    later = {**first, "c.gin": "mixer_norm/RMSNorm.epsilon = 5e-1"}
    found = values(load_files(tmp_path, later, "EPSILON = 1e-4"), "RMSNorm", "epsilon")
    assert found["decoder/block_0/mixer_norm"] == "0.5"


WRONG = {
    "a type": ("EPSILON = 1e-3\n" + EPSILON, "EPSILON = 'small'", "RMSNorm.epsilon must be float"),
    "a range": (
        "WIDTH = 64\nGatedMLP.intermediate_size = %WIDTH",
        "WIDTH = -1",
        "GatedMLP.intermediate_size must be positive",
    ),
    "no effect": (
        "PART = @GatedMLP\nembeddings/DecoderBlock.mlp = %PART",
        "PART = @MLP",
        "no DecoderBlock is built in the scope 'embeddings'",
    ),
    "another constructor": (
        "PART = @GatedMLP\nDecoderBlock.mlp = %PART",
        "PART = 3",
        "DecoderBlock.mlp must be",
    ),
}


@pytest.mark.parametrize(("file", "flag", "message"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("chained", [False, True], ids=["", "chained"])
def test_an_error_names_the_statement_and_the_flag_with_the_value(tmp_path, file, flag, message, chained):
    if chained:
        name = flag.split()[0]
        file = f"OTHER = 1\n{file}".replace(f"\n{name} = ", "\nOTHER = ", 1) + f"\n{name} = %OTHER"
        flag = flag.replace(name, "OTHER")
    with pytest.raises(ConfigError) as caught:
        load_files(tmp_path, {"a.gin": file}, flag)
    line = next(i for i, text in enumerate(file.splitlines(), 1) if "." in text.partition("=")[0])
    (problem,) = caught.value.problems
    place = f"{(tmp_path / 'a.gin').as_posix()}:{line} via --gin_bindings[1]: "
    assert re.match(re.escape(place + message), str(problem)), str(problem)


def test_an_invalid_value_replaced_by_a_flag_is_no_error(tmp_path):
    config = load_files(tmp_path, {"a.gin": "EPSILON = 'small'\n" + EPSILON}, "EPSILON = 1e-4")
    assert set(values(config, "RMSNorm", "epsilon").values()) == {"0.0001"}


def test_a_swap_through_chained_macros_skips_options_of_the_part(tmp_path):
    text = "INNER = @GatedMLP\nPART = %INNER\nDecoderBlock.mlp = %PART\nGatedMLP.intermediate_size = 64"
    config = load_files(tmp_path, {"a.gin": text}, "INNER = @MLP")
    assert "# left out: replaced by DecoderBlock.mlp = @MLP" in config.text
    assert "via --gin_bindings[1]" in config.text


def test_a_saved_config_has_values_instead_of_macros_and_loads_equal(tmp_path):
    config = load_files(tmp_path, {"a.gin": "EPSILON = 1e-3\n" + EPSILON}, "EPSILON = 1e-4")
    (tmp_path / "operative_config.gin").write_text(config.operative)
    again = load(tmp_path / "operative_config.gin", root=build_on_meta)
    assert again.operative == config.operative
