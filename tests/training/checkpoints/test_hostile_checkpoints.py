"""Reading a checkpoint executes nothing, leaves the folder for nothing, and allocates no more than the files hold."""

import collections
import contextlib
import hashlib
import io
import os
import pickle
import shutil
import struct
import tracemalloc
import zipfile

import pytest
import torch
from hostile import Calls, archive_of, index_of, reseal, touching, write_index
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
)

from ml.distributed import ALONE
from ml.training import RunError
from ml.training.checkpoints import tensor_files
from ml.training.checkpoints.atomic_folders import damage
from ml.training.checkpoints.index_file import read_index
from ml.training.checkpoints.state_files import read_counts
from ml.training.checkpoints.tensor_archive import read_tensor
from ml.training.checkpoints.tensor_files import TensorShape, read_tensors, tensor_shapes

TENSORS = {
    "model/weight": torch.arange(12.0).reshape(3, 4),
    "model/bias": torch.arange(3).bfloat16(),
    "optimizer/weight/step": torch.tensor(7.0),
    "model/empty": torch.empty(0, 4),
}
WEIGHT = MetadataIndex("model/weight", torch.Size([0, 0]))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "step_4"
    folder.mkdir()
    plan = tensor_files.plan_writing(TENSORS, ALONE)
    tensor_files.write_index(folder, plan, [tensor_files.write_tensors(folder, TENSORS, plan)])
    (folder / "training.json").write_text("{}")
    reseal(folder)
    return folder


@pytest.fixture
def checkpoint(written, tmp_path):
    return shutil.copytree(written, tmp_path / "step_4")


def test_an_index_is_read_as_torch_reads_it(checkpoint):
    ours, theirs = read_index(checkpoint), index_of(checkpoint)
    assert ours.tensors == theirs.state_dict_metadata
    assert ours.places == theirs.storage_data
    assert tensor_shapes(checkpoint) == {name: TensorShape.of(tensor) for name, tensor in TENSORS.items()}
    read = {name: torch.full_like(tensor, -1) for name, tensor in TENSORS.items()}
    read_tensors(checkpoint, read)
    assert all(torch.equal(read[name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("where", ["whole", "in_a_field", "in_a_key", "in_a_size", "after_the_index"])
def test_no_pickle_calls_anything(checkpoint, tmp_path, protocol, where):
    canary, index = tmp_path / "canary", index_of(checkpoint)
    if where == "whole":
        index = touching(canary)
    elif where == "in_a_field":
        index.planner_data = touching(canary)
    elif where == "in_a_key":
        index.state_dict_metadata[Calls(str, touching(canary))] = index.state_dict_metadata.pop("model/bias")
    elif where == "in_a_size":
        index.state_dict_metadata["model/bias"].size = Calls(torch.Size, [touching(canary)])
    else:
        index = (index, touching(canary))
    content = pickle.dumps(index, protocol)
    (checkpoint / ".metadata").write_bytes(content)
    with pytest.raises(RunError, match=r"step_4/\.metadata is not an index of tensors"):
        read_index(checkpoint)
    assert not canary.exists()
    with contextlib.suppress(TypeError):
        pickle.loads(content)
    assert canary.exists(), "the test must be able to fail"


@pytest.mark.parametrize(
    "name",
    [
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("torch", "load"),
        ("torch", "Size.__class__"),
        ("torch", "hub"),
        ("torch.serialization", "load"),
        ("torch.serialization", "_get_layout.__globals__"),
        ("torch.distributed.checkpoint.metadata", "os"),
        ("torch.distributed.checkpoint.metadata", "field"),
        ("torch.distributed.checkpoint.filesystem", "os.system"),
        ("pathlib", "os"),
        ("copyreg", "_reconstructor"),
        ("__main__", "x"),
    ],
)
def test_names_other_than_the_classes_of_an_index_are_refused(checkpoint, name):
    by_stack = b"\x80\x04" + b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in name) + b"\x93."
    for content in (by_stack, f"c{name[0]}\n{name[1]}\n.".encode(), f"(i{name[0]}\n{name[1]}\n.".encode()):
        (checkpoint / ".metadata").write_bytes(content)
        with pytest.raises(RunError, match="which is no part of an index"):
            read_index(checkpoint)


def test_a_pickle_changes_no_class(checkpoint):
    """BUILD sets attributes of whatever is on the stack; on a class that would change torch for the whole process."""
    metadata = b"\x80\x04ctorch.distributed.checkpoint.metadata\nStorageMeta\n"
    state = pickle.dumps((None, {"load_id": "changed", "__init__": 1}), 4)[2:-1]
    before = dict(vars(StorageMeta))
    (checkpoint / ".metadata").write_bytes(metadata + state + b"b.")
    with pytest.raises(RunError):
        read_index(checkpoint)
    assert dict(vars(StorageMeta)) == before


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80",
        b"not a pickle",
        b"\x80\x04.",
        b"\x80\x04N.",
        b"\x80\x04\x95" + struct.pack("<Q", 10**13) + b"N.",
        b"\x80\x04\x8e" + struct.pack("<Q", 10**13) + b"x.",
        b"\x80\x04\x8b" + struct.pack("<i", 2**31 - 1) + b"x.",
        b"\x80\x04Nr" + struct.pack("<I", 2**32 - 1) + b".",  # a memo of 4 billion entries
        b"Np99999999999999999999\n.",
        b"\x80\x04" + b"(" * 100_000 + b".",
        b"\x80\x04]" + b"\x94h\x00a" * 1000 + b".",
        b"\x80\x04Pabc\n.",
        b"\x80\x04\x82\x01.",
        b"\x80\x05\x97.",
    ],
)
def test_bytes_that_are_no_index_are_refused_in_little_memory(checkpoint, content):
    (checkpoint / ".metadata").write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(RunError, match=r"\.metadata is not an index of tensors"):
            read_index(checkpoint)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def claim_ten_terabytes(index):
    tensor = index.state_dict_metadata["model/weight"]
    tensor.size = torch.Size([10**6, 10**7])
    tensor.chunks = [ChunkStorageMetadata(torch.Size([0, 0]), tensor.size)]


def claim_a_long_part(index):
    claim_ten_terabytes(index)
    index.storage_data[WEIGHT].length = 10**15


def claim_the_same_bytes_twice(index):
    index.state_dict_metadata["model/copy"] = index.state_dict_metadata["model/weight"]
    index.storage_data[MetadataIndex("model/copy", WEIGHT.offset)] = index.storage_data[WEIGHT]


def leave_a_part_out(index):
    index.state_dict_metadata["model/weight"].chunks = []


def repeat_a_part(index):
    tensor = index.state_dict_metadata["model/weight"]
    half = ChunkStorageMetadata(torch.Size([0, 0]), torch.Size([3, 2]))
    tensor.chunks = [half, ChunkStorageMetadata(torch.Size([0, 3]), torch.Size([3, 2]))]


def lose_a_place(index):
    del index.storage_data[WEIGHT]


def name(file):
    def change(index):
        index.storage_data[WEIGHT].relative_path = file

    change.__name__ = f"name_{file}"
    return change


def make_negative(index):
    index.storage_data[WEIGHT].offset = -5


def make_it_an_object(index):
    """torch's planner loads entries of this kind with all of pickle."""
    index.state_dict_metadata["model/weight"] = BytesStorageMetadata()


def transform(index):
    index.storage_data[WEIGHT].transform_descriptors = ["zstd"]


def make_sizes_no_numbers(index):
    index.state_dict_metadata["model/weight"].size = ("3", 4)


def make_sizes_fractions(index):
    index.state_dict_metadata["model/weight"].size = (3.0, 4)


def take_the_dtype(index):
    index.state_dict_metadata["model/weight"].properties = TensorProperties(dtype="float32")


@pytest.mark.parametrize(
    "change",
    [
        claim_ten_terabytes,
        claim_a_long_part,
        claim_the_same_bytes_twice,
        leave_a_part_out,
        repeat_a_part,
        lose_a_place,
        *map(name, ["../__0_0.distcp", "/etc/passwd", "/dev/zero", "..", "", "a/b.distcp", "x\n.distcp", b"x", None]),
        make_negative,
        make_it_an_object,
        transform,
        make_sizes_no_numbers,
        make_sizes_fractions,
        take_the_dtype,
    ],
    ids=lambda change: change.__name__,
)
def test_an_index_that_does_not_fit_its_files_is_refused(checkpoint, change):
    index = index_of(checkpoint)
    change(index)
    write_index(checkpoint, index)
    with pytest.raises(RunError, match=r"step_4/\.metadata is not an index of tensors: "):
        tensor_shapes(checkpoint)


def test_a_file_of_tensors_that_is_missing_is_named(checkpoint):
    (checkpoint / "__0_0.distcp").unlink()
    with pytest.raises(RunError, match=r"\.metadata cannot be read: No such file"):
        read_index(checkpoint)


def legacy(value):
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def bomb():
    return archive_of(torch.zeros(4_000_000), zipfile.ZIP_DEFLATED)


PARTS = ["object", "dict", "pickle", "old_object", "old", "list", "sparse", "ordered", "bomb", "empty", "zip", "cut"]


@pytest.mark.parametrize(
    "make",
    [
        lambda canary: archive_of(touching(canary)),
        lambda canary: archive_of({"a": touching(canary)}),
        lambda canary: pickle.dumps(touching(canary)),
        lambda canary: legacy(touching(canary)),
        lambda canary: legacy(torch.zeros(3)),
        lambda canary: archive_of([1, 2]),
        lambda canary: archive_of(torch.eye(3).to_sparse()),
        lambda canary: archive_of(collections.OrderedDict()),
        lambda canary: bomb(),
        lambda canary: b"",
        lambda canary: b"PK\x05\x06" + bytes(18),
        lambda canary: archive_of(torch.zeros(100))[:-30],
    ],
    ids=PARTS,
)
def test_a_part_that_is_no_plain_archive_of_a_tensor_is_refused(tmp_path, make):
    canary, file = tmp_path / "canary", tmp_path / "__0_0.distcp"
    content = make(canary)
    file.write_bytes(b"before" + content + b"after")
    with pytest.raises(RunError, match=r"__0_0\.distcp has no tensor at byte 6"):
        read_tensor(file, 6, len(content))
    assert not canary.exists()


def test_a_part_is_read_where_it_is(tmp_path):
    file, tensor = tmp_path / "file", torch.arange(1000.0)
    content = archive_of(tensor)
    file.write_bytes(content[:77] + content + content)
    assert torch.equal(read_tensor(file, 77, len(content)), tensor)


def test_a_tensor_of_another_shape_than_in_the_index_is_refused(checkpoint):
    index = index_of(checkpoint)
    place = index.storage_data[WEIGHT]
    other = archive_of(torch.zeros(1).expand(4, 3))
    place.offset, place.length = 0, len(other)
    index.state_dict_metadata = {"model/weight": index.state_dict_metadata["model/weight"]}
    index.storage_data = {WEIGHT: place}
    (checkpoint / "__0_0.distcp").write_bytes(other)
    write_index(checkpoint, index)
    with pytest.raises(RunError, match=r"__0_0\.distcp has torch\.float32 \(4, 3\) for model/weight"):
        read_tensors(checkpoint, {"model/weight": torch.zeros(3, 4)})


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
@pytest.mark.parametrize("file", [".metadata", "__0_0.distcp", "training.json", "manifest.json", "COMMITTED"])
def test_entries_that_are_no_regular_files_are_damage(checkpoint, tmp_path, file, kind):
    moved = (checkpoint / file).rename(tmp_path / "elsewhere")
    path = checkpoint / file
    {"link": lambda: path.symlink_to(moved), "fifo": lambda: os.mkfifo(path), "folder": path.mkdir}[kind]()
    assert damage(checkpoint) == f"{file} is not a regular file"


@pytest.mark.parametrize("name", ["../elsewhere", "/dev/zero", "..", ".", "", "a/b", r"a\u0000"])
def test_a_manifest_names_files_of_its_folder_only(checkpoint, tmp_path, name):
    (tmp_path / "elsewhere").write_bytes(b"")
    reseal(checkpoint)
    manifest = (checkpoint / "manifest.json").read_text().replace("training.json", name)
    (checkpoint / "manifest.json").write_text(manifest)
    (checkpoint / "COMMITTED").write_text("manifest.json " + hashlib.sha256(manifest.encode()).hexdigest() + "\n")
    assert "which is not in the folder" in damage(checkpoint)


GOOD = '"step": 4, "tokens": 1, "seconds": 0.1, "data_sha256": "a", "unvalidated": null, "untouched": []'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "nonsense",
        "[" * 100_000,
        "{}",
        "{" + GOOD.replace("4", "-4") + "}",
        "{" + GOOD.replace("4", "1" + "0" * 30) + "}",
        "{" + GOOD.replace("4", "4.5") + "}",
        "{" + GOOD.replace("0.1", "NaN") + "}",
        "{" + GOOD.replace("null", '{"step": 4, "loss": "x"}') + "}",
        "{" + GOOD.replace("null", "3") + "}",
        "{" + GOOD.replace("[]", "[1]") + "}",
        "{" + GOOD + ', "sequences": "many"}',
        "\xff",
    ],
)
def test_wrong_values_of_a_checkpoint_are_named_with_the_file(checkpoint, text):
    (checkpoint / "training.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"step_4/training\.json"):
        read_counts(checkpoint)
    (checkpoint / "training.json").write_text("{" + GOOD + ', "later": 1}')
    assert read_counts(checkpoint)["step"] == 4
