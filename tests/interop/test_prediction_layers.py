"""Layers for speculative decoding after the last block, as in DeepSeek-V3: known by their number, and not read."""

import json

import pytest
import torch
from hub_cases import DEEPSEEK
from hub_models import imported, oracle_of, saved, with_fields
from safetensors.torch import load_file, save_file

from ml.interop.describing import describe_folder
from ml.interop.errors import InteropError
from ml.interop.exporting import export_folder
from ml.interop.folder import SINGLE, Folder

FIELD = "num_nextn_predict_layers"


@pytest.fixture
def folder(tmp_path):
    """A model of two blocks with the tensors of one layer after them."""
    folder = saved(oracle_of("DeepseekV3", DEEPSEEK), tmp_path / "model")
    tensors = load_file(folder / SINGLE)
    of_last = {name: tensor for name, tensor in tensors.items() if name.startswith("model.layers.1.")}
    later = {name.replace("layers.1.", "layers.2."): tensor.clone() for name, tensor in of_last.items()}
    width = len(tensors["model.norm.weight"])
    own = {"enorm": (width,), "hnorm": (width,), "eh_proj": (width, 2 * width), "shared_head.norm": (width,)}
    own |= {"embed_tokens": (61, width), "shared_head.head": (61, width)}
    later |= {f"model.layers.2.{name}.weight": torch.rand(shape) for name, shape in own.items()}
    save_file({**tensors, **later}, folder / SINGLE, {"format": "pt"})
    return with_fields(folder, {FIELD: 1})


def test_the_layers_are_not_read_and_not_written(folder, tmp_path):
    model = imported(folder)
    (line,) = [line for line in describe_folder(folder) if line.startswith("not read")]
    assert "model.layers.2.eh_proj.weight" in line
    assert "model.layers.1." not in line
    export_folder(model, tmp_path / "again", kept=Folder(folder).kept_files())
    names = load_file(tmp_path / "again" / SINGLE).keys()
    assert names == {name for name in load_file(folder / SINGLE) if not name.startswith("model.layers.2.")}
    assert json.loads((tmp_path / "again" / "config.json").read_text())[FIELD] == 0


@pytest.mark.parametrize("number", [0, ...])
def test_layers_without_a_field_are_tensors_of_another_model(folder, number):
    with pytest.raises(InteropError, match=r"in the checkpoint and not in the model[\s\S]*model\.layers\.2\.e"):
        imported(with_fields(folder, {FIELD: number}))


def test_layers_after_those_of_the_field_are_tensors_of_another_model(folder):
    tensors = load_file(folder / SINGLE)
    save_file({**tensors, "model.layers.3.enorm.weight": torch.ones(40)}, folder / SINGLE, {"format": "pt"})
    with pytest.raises(InteropError, match=r"model\.layers\.3\.enorm"):
        imported(folder)


@pytest.mark.parametrize("number", ["1", -1, True])
def test_a_number_that_is_none_is_refused(folder, number):
    with pytest.raises(InteropError, match=f"config.json#{FIELD} must be a number of layers"):
        imported(with_fields(folder, {FIELD: number}))
