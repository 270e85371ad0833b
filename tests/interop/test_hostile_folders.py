"""Folders that are damaged, that lie, or that would run code: one clear error, and nothing is executed or written."""

import json
import shutil
import struct

import pytest
import torch
from hub_models import imported, oracle_of, saved, with_fields
from safetensors.torch import load_file, save_file

from ml.interop.errors import InteropError
from ml.interop.folder import INDEX, SINGLE, Folder
from ml.interop.importing import imported_values


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = saved(oracle_of("Llama", {}), tmp_path_factory.mktemp("whole"))
    oracle_of("Llama", {}).save_pretrained(folder / "sharded", max_shard_size="20KB")
    return folder


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "model", ignore=shutil.ignore_patterns("sharded"))


@pytest.fixture
def sharded(original, tmp_path):
    return shutil.copytree(original / "sharded", tmp_path / "sharded")


def shards(folder):
    return sorted(folder.glob("model-*.safetensors"))


def rewrite_header(file, change):
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def test_a_sharded_folder_is_the_same_model(original):
    assert len(shards(original / "sharded")) > 2
    first, second = imported(original), imported(original / "sharded")
    for (name, weight), other in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(weight, other), name
    assert Folder(original).sha256() == Folder(original / "sharded").sha256()


def test_hash_covers_every_byte(folder):
    before = Folder(folder).sha256()
    tensors = load_file(folder / SINGLE)
    tensors["model.norm.weight"][-1] += 1
    save_file(tensors, folder / SINGLE)
    assert Folder(folder).sha256() != before


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_truncated_files_are_refused(folder, size):
    content = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(content[:size])
    with pytest.raises(InteropError, match=r"truncated|not a whole"):
        imported(folder)


def test_a_file_with_more_bytes_is_refused(folder):
    with (folder / SINGLE).open("ab") as file:
        file.write(b"0")
    with pytest.raises(InteropError, match=r"too long"):
        imported(folder)


HEADERS = {
    "overlap": (lambda h: h["model.norm.weight"].update(data_offsets=[0, 160]), "contradicts itself"),
    "shape": (lambda h: h["model.norm.weight"].update(shape=[39]), "contradicts itself"),
    "negative": (lambda h: h["model.norm.weight"].update(shape=[-40]), "cannot be read"),
    "huge": (lambda h: h["model.norm.weight"].update(shape=[1 << 70]), "contradicts itself"),
    "no offsets": (lambda h: h["model.norm.weight"].pop("data_offsets"), "cannot be read"),
    "text": (lambda h: h.update(x="y"), "cannot be read"),
    "integers": (lambda h: h["model.norm.weight"].update(dtype="I32"), "has the dtype I32"),
    "float8": (lambda h: h["model.norm.weight"].update(dtype="F8_E4M3"), "no quantized weights"),
}


@pytest.mark.parametrize(("change", "message"), HEADERS.values(), ids=HEADERS)
def test_headers_that_lie_are_refused(folder, change, message):
    rewrite_header(folder / SINGLE, change)
    with pytest.raises(InteropError, match=message):
        imported(folder)


def test_half_precision_is_widened(folder):
    tensors = load_file(folder / SINGLE)
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, folder / SINGLE)
    weight = imported(folder).get_parameter("head.norm.weight")
    assert torch.equal(weight, tensors["model.norm.weight"].bfloat16().float())


def test_a_missing_shard_is_named(sharded):
    shards(sharded)[1].unlink()
    with pytest.raises(InteropError, match=r"model-00002-of.*is missing"):
        imported(sharded)


def change_index(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/hostname", "a/b.safetensors", "", "..", "a\\b"])
def test_paths_that_leave_the_folder_are_refused(sharded, name):
    change_index(sharded, lambda places: places.update({"model.norm.weight": name}))
    with pytest.raises(InteropError, match=r"is not the name of a file"):
        imported(sharded)


def test_an_index_that_lies_is_refused(sharded):
    first, second = (file.name for file in shards(sharded)[:2])
    tensor = next(name for name, _ in load_file(sharded / first).items())
    change_index(sharded, lambda places: places.update({tensor: second}))
    with pytest.raises(InteropError, match=r"does not fit the files"):
        imported(sharded)


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 1}}', "{"])
def test_an_index_that_is_none_is_refused(sharded, content):
    (sharded / INDEX).write_text(content)
    with pytest.raises(InteropError, match=r"weight_map|not a JSON object|not JSON"):
        imported(sharded)


def test_links_stay_in_the_folder_or_in_the_cache_of_the_hub(folder, tmp_path):
    outside = shutil.move(folder / SINGLE, tmp_path / "weights")
    (folder / SINGLE).symlink_to(outside)
    with pytest.raises(InteropError, match=r"a link that leaves the folder"):
        imported(folder)
    cache = tmp_path / "models--someone--model"
    snapshot = cache / "snapshots" / "1234"
    (cache / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    shutil.move(outside, cache / "blobs" / "abcd")
    (snapshot / SINGLE).symlink_to("../../blobs/abcd")
    shutil.copy(folder / "config.json", cache / "blobs" / "ef")
    (snapshot / "config.json").symlink_to("../../blobs/ef")
    imported(snapshot)
    (snapshot / SINGLE).unlink()
    (snapshot / SINGLE).symlink_to(folder / "config.json")
    with pytest.raises(InteropError, match=r"a link that leaves the folder"):
        imported(snapshot)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pth"])
def test_pickles_are_never_loaded(folder, name):
    (folder / SINGLE).unlink()
    (folder / name).write_bytes(b"cos\nsystem\n(S'touch /tmp/never'\ntR.")
    with pytest.raises(InteropError, match=f"{name}, a pickle, which can execute code"):
        imported(folder)


REFUSED = {
    "own code": ({"auto_map": {"AutoModel": "code.Model"}}, "never executed"),
    "quantized": ({"quantization_config": {"quant_method": "fp8"}}, "quantized weights"),
    "unknown family": ({"model_type": "llamma"}, "model_type is 'llamma'"),
    "no family": ({"model_type": ...}, "model_type is None"),
    "list as family": ({"model_type": ["llama"]}, "model_type is"),
    "unknown field": ({"use_magic": True, "use_more": 3}, "use_magic = True, use_more = 3"),
    "missing size": ({"hidden_size": ...}, "has no hidden_size"),
    "text as number": ({"hidden_size": "40", "head_dim": None}, "hidden_size must be a positive integer"),
    "two spellings": ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "both rope_scaling and rope_parameters"),
    "unknown scaling": ({"rope_parameters": {"rope_type": "magic"}}, "rope_type is 'magic'"),
    "unknown part of the scaling": (
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "mrope_section": [1]}},
        "rope_parameters.mrope_section",
    ),
    "scaling without a factor": ({"rope_parameters": {"rope_type": "linear"}}, "factor .*is missing"),
    "unknown activation": ({"hidden_act": "magic"}, "hidden_act is 'magic'"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_configurations_that_cannot_be_expressed_are_refused(folder, changes, message):
    with_fields(folder, changes)
    with pytest.raises(InteropError, match=message):
        imported_values(Folder(folder))


@pytest.mark.parametrize("content", ["[]", "{", "3", "\x00"])
def test_a_configuration_that_is_none_is_refused(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(InteropError, match=r"not JSON|not a JSON object"):
        imported_values(Folder(folder))


def test_tensors_left_over_or_missing_are_listed(folder):
    tensors = load_file(folder / SINGLE)
    tensors["model.layers.0.self_attn.extra"] = torch.zeros(3)
    del tensors["model.norm.weight"]
    save_file(tensors, folder / SINGLE)
    with pytest.raises(InteropError) as caught:
        imported(folder)
    assert "missing from the checkpoint:\n    model.norm.weight, for head.norm.weight" in str(caught.value)
    assert "not in the model:\n    model.layers.0.self_attn.extra" in str(caught.value)


def test_the_head_beside_tied_embeddings_must_be_equal(folder):
    with_fields(folder, {"tie_word_embeddings": True})
    with pytest.raises(InteropError, match=r"tie_word_embeddings is true, and the checkpoint has another head"):
        imported(folder)
    tensors = load_file(folder / SINGLE)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / SINGLE)
    assert imported(folder).tie_word_embeddings
    del tensors["lm_head.weight"]
    save_file(tensors, folder / SINGLE)
    with_fields(folder, {"tie_word_embeddings": False})
    with pytest.raises(InteropError, match=r"lm_head.weight, for head.weight"):
        imported(folder)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(InteropError, match=r"there is no folder"):
        Folder(tmp_path / "nothing")
    with pytest.raises(InteropError, match=r"neither a run nor a Hugging Face folder"):
        Folder(tmp_path)
    (tmp_path / "adapter_config.json").touch()
    with pytest.raises(InteropError, match=r"it holds an adapter"):
        Folder(tmp_path)
