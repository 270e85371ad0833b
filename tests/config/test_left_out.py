"""Lines that a later source makes useless are skipped; within one source they are an error."""

import pytest
import torch
from small_model import SMALL, build_on_meta, values

from ml.config import ConfigError, child, configurable, load
from ml.layers.linear import Linear


def left_out(config) -> dict[str, str]:
    """Returns each skipped statement with its reason, without places."""
    lines = config.text.splitlines()
    found = [(lines[i + 1], line) for i, line in enumerate(lines) if line.startswith("# left out: ")]
    return {
        text.removeprefix("# ").partition("  #")[0].strip(): why.removeprefix("# left out: ").partition(" (")[0]
        for text, why in found
    }


def write(folder, files: dict[str, str]):
    for name, text in files.items():
        (folder / name).write_text(text)


BASE = "RMSNorm.epsilon = 1e-3\n"
NORMS = ["mixer_norm/RMSNorm.epsilon = 1e-4", "mlp_norm/RMSNorm.epsilon = 1e-4", "head/RMSNorm.epsilon = 1e-4"]
SHADOWED = {"RMSNorm.epsilon = 0.001": "shadowed by head/RMSNorm.epsilon = 0.0001"}


def test_a_line_of_a_file_shadowed_by_flags_is_skipped(tmp_path):
    write(tmp_path, {"base.gin": SMALL + BASE})
    config = load(tmp_path / "base.gin", NORMS, root=build_on_meta)
    assert left_out(config) == SHADOWED
    assert set(values(config, "RMSNorm", "epsilon").values()) == {"0.0001"}


def test_a_line_shadowed_by_an_including_or_later_file_is_skipped(tmp_path):
    write(tmp_path, {"base.gin": SMALL + BASE, "run.gin": "include 'base.gin'\n" + "\n".join(NORMS[:2])})
    write(tmp_path, {"last.gin": NORMS[2]})
    config = load([tmp_path / "run.gin", tmp_path / "last.gin"], root=build_on_meta)
    assert left_out(config) == SHADOWED


def test_a_line_of_a_saved_operative_config_is_skipped(tmp_path):
    write(tmp_path, {"base.gin": SMALL + BASE})
    write(tmp_path, {"saved.gin": load(tmp_path / "base.gin", root=build_on_meta).operative})
    once = load(tmp_path / "saved.gin", NORMS, root=build_on_meta)
    assert left_out(once) == SHADOWED
    write(tmp_path, {"again.gin": once.operative})
    assert load(tmp_path / "again.gin", root=build_on_meta).operative == once.operative


NOT_EXCUSED = {
    "one shadow in the same file": ({"a.gin": BASE + NORMS[0]}, NORMS[1:]),
    "all in one flag": ({"a.gin": ""}, ["\n".join([BASE, *NORMS])]),
    "one shadow before": ({"a.gin": NORMS[0] + "\n", "b.gin": BASE}, NORMS[1:]),
    "the includer before its include": ({"b.gin": BASE, "a.gin": NORMS[0] + "\ninclude 'b.gin'"}, NORMS[1:]),
}


@pytest.mark.parametrize(("files", "flags"), NOT_EXCUSED.values(), ids=NOT_EXCUSED)
def test_a_line_shadowed_within_its_source_is_an_error(tmp_path, files, flags):
    write(tmp_path, files)
    named = [tmp_path / name for name in files if "include" in files[name]] or [tmp_path / name for name in files]
    with pytest.raises(ConfigError) as caught:
        load(named, [SMALL, *flags], root=build_on_meta)
    (problem,) = caught.value.problems
    assert problem.message.startswith("it is overridden everywhere by ")
    assert problem.statement == "RMSNorm.epsilon = 0.001"


class Builds:
    """A root that counts its calls."""

    def __init__(self):
        self.count = 0

    def __call__(self):
        self.count += 1
        return build_on_meta()


def test_two_hundred_swaps_with_stale_options_between_them_take_one_more_build(tmp_path):
    blocks = range(200)
    base = "".join(f"block_{i}/GatedMLP.intermediate_size = {64 + i}\n" for i in blocks)
    swaps = "".join(f"block_{i}/DecoderBlock.mlp = @MLP\nblock_{i}/mlp/MLP.intermediate_size = 64\n" for i in blocks)
    swaps += "".join(f"block_{i}/DecoderBlock.mlp = @wide/MLP\n" for i in blocks)
    small = SMALL.replace("num_blocks = 5", "num_blocks = 200")
    write(tmp_path, {"base.gin": small + base + swaps})
    root = Builds()
    again = [f"block_{i}/DecoderBlock.mlp = @GatedMLP" for i in blocks]
    config = load(tmp_path / "base.gin", again, root=root, allow_unused_bindings=True)
    assert root.count == 2
    found = left_out(config)
    assert len(found) == 200
    assert found["block_7/mlp/MLP.intermediate_size = 64"] == "replaced by block_7/DecoderBlock.mlp = @GatedMLP"
    assert config.warnings == ()


def test_an_option_that_never_was_of_use_does_not_hide_a_swap_that_came_before_another_option(tmp_path):
    """The parts in effect when each line was read count: none for the first line, MixtureOfExperts for the second."""
    lines = ["Mamba2.state_size = 8", "block_2/DecoderBlock.mlp = @MLP", "block_2/MLP.intermediate_size = 64"]
    write(tmp_path, {"a.gin": SMALL + "\n".join(lines)})
    root = Builds()
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "a.gin", "block_1_to_3/DecoderBlock.mlp = None\nblock_2/DecoderBlock.mlp = None", root=root)
    (problem,) = caught.value.problems
    assert "Mamba2 is not built" in problem.message
    assert root.count == 2


def test_the_swap_of_the_part_itself_is_named(tmp_path):
    base = "GatedMLP.intermediate_size = 64\nmixer/query/Linear.bias = False\nhead/RMSNorm.epsilon = 1e-3\n"
    write(tmp_path, {"base.gin": SMALL + base})
    flags = [
        "DecoderBlock.mixer = @Mamba2",
        "DecoderBlock.mlp = None",
        "LanguageModelHead.normalization = @LayerNorm",
        "DecoderBlock.activation_checkpointing = None",
    ]
    assert left_out(load(tmp_path / "base.gin", flags, root=build_on_meta)) == {
        "Attention.num_heads = 4": "replaced by DecoderBlock.mixer = @Mamba2",
        "mixer/query/Linear.bias = False": "replaced by DecoderBlock.mixer = @Mamba2",
        "GatedMLP.intermediate_size = 64": "replaced by DecoderBlock.mlp = None",
        "head/RMSNorm.epsilon = 0.001": "replaced by LanguageModelHead.normalization = @LayerNorm",
    }


def test_two_swaps_one_inside_the_part_replaced_by_the_other(tmp_path):
    write(tmp_path, {"base.gin": SMALL + "MLP.intermediate_size = 64\n", "mlp.gin": "DecoderBlock.mlp = @MLP"})
    write(tmp_path, {"base.gin": SMALL + "DecoderBlock.mlp = @MLP\nMLP.intermediate_size = 64"})
    flags = ["DecoderBlock.mlp = None", "decoder/Repeat.block = @wide/DecoderBlock"]
    found = left_out(load(tmp_path / "base.gin", flags, root=build_on_meta))
    assert found == {"MLP.intermediate_size = 64": "replaced by DecoderBlock.mlp = None"}


def test_a_swap_through_several_constructors(tmp_path):
    base = "DecoderBlock.mlp = @MixtureOfExperts\nexperts/GatedMLP.intermediate_size = 64"
    write(tmp_path, {"base.gin": SMALL + base})
    found = left_out(load(tmp_path / "base.gin", "MixtureOfExperts.expert = @MLP", root=build_on_meta))
    assert found == {"experts/GatedMLP.intermediate_size = 64": "replaced by MixtureOfExperts.expert = @MLP"}


@configurable
class Pen:
    def __init__(self, *, ink: str = "blue"):
        self.ink = ink


@configurable
class Pencil:
    def __init__(self, *, hardness: int = 2):
        self.hardness = hardness


@configurable
class Writer:
    def __init__(self, *, tool: type = Pen, others: dict[str, type] | None = None, shared: object = None):
        self.tool = child("tool", tool)
        self.others = {name: child(name, made) for name, made in (others or {}).items()}
        self.shared = shared


@configurable
class Desk:
    def __init__(self, *, writer: type | None = None):
        self.writer = None if writer is None else child("writer", writer)


def test_entries_of_a_dict_and_singletons_are_skipped_with_their_part(tmp_path):
    text = "Desk.writer = @Writer\nWriter.others = {'pencil': @Pencil}\nPencil.hardness = 4\n"
    text += "Writer.shared = @ink/gin.singleton()\nink/gin.singleton.constructor = @Pencil"
    write(tmp_path, {"a.gin": text})
    found = left_out(load(tmp_path / "a.gin", "Desk.writer = None", root=Desk))
    assert set(found.values()) == {"replaced by Desk.writer = None"}
    assert len(found) == 4
    found = left_out(load(tmp_path / "a.gin", ["Writer.others = {'pen': @Pen}", "Writer.shared = 3"], root=Desk))
    assert found["Pencil.hardness = 4"] == "replaced by Writer.others = {'pen': @Pen}"


def test_a_required_option_of_a_replaced_part_is_skipped(tmp_path):
    write(tmp_path, {"a.gin": "Desk.writer = @Writer\ntool/Pen.ink = %gin.REQUIRED"})
    assert left_out(load(tmp_path / "a.gin", "Writer.tool = @Pencil", root=Desk)) == {
        "tool/Pen.ink = %gin.REQUIRED": "replaced by Writer.tool = @Pencil"
    }


REQUIRED = {
    "in a scope that nothing enters": ("qeury/Linear.bias", "there is no scope 'qeury' in the model"),
    "in a scope that holds no such thing": ("mlp/Attention.num_heads", "no Attention is built in the scope 'mlp'"),
    "of a shape that the parent decides": (
        "Linear.in_features",
        "Linear.in_features cannot be bound: the parent always passes it",
    ),
    "of a part that is not built": ("Mamba2.state_size", "Mamba2 is not built"),
}


@pytest.mark.parametrize(("key", "message"), REQUIRED.values(), ids=REQUIRED)
def test_a_parameter_that_cannot_be_set_cannot_be_required(problems, key, message):
    (found,) = problems(f"{key} = %gin.REQUIRED")
    assert message in found


def test_a_required_value_may_be_set_in_any_way(load_model):
    config = load_model("Linear.bias = %gin.REQUIRED", *(f"{name}/Linear.bias = True" for name in LINEARS))
    assert set(values(config, "Linear", "bias").values()) == {"True"}


LINEARS = ("query", "key", "value", "output", "gate", "up", "down")


def test_the_search_for_skipped_lines_does_not_affect_a_build(tmp_path):
    write(tmp_path, {"a.gin": SMALL + "GatedMLP.intermediate_size = 64"})
    config = load(
        tmp_path / "a.gin", "block_1_to_4/DecoderBlock.mlp = @MLP\nblock_0/DecoderBlock.mlp = @MLP", root=build_on_meta
    )
    with torch.device("meta"):
        model = config.build(build_on_meta)
    assert {type(block.mlp).__name__ for block in model.decoder.blocks} == {"MLP"}
    assert isinstance(model.decoder.blocks[0].mlp.up, Linear)
