"""Weights of a Hugging Face folder in sharded models: each process holds its part of what one process loads."""

import sys
from pathlib import Path

import pytest
import torch
from laid_out import whole
from processes import run_ranks

from ml import config as configuration
from ml.building import _trainer_on_meta, build_trainer
from ml.distributed import Layout
from ml.interop.folder import Folder
from ml.interop.from_hugging_face import HuggingFaceStart
from ml.interop.importing import imported_values
from ml.training.state import named_weights

sys.path.append(str(Path(__file__).parents[1] / "interop"))

MESHES = {"FSDP": ["Mesh.data_shard = 4"], "FSDP and tensor": ["Mesh.data_shard = 2", "Mesh.tensor = 2"]}


def trainer_of(folder, mesh=()):
    """The trainer of the model of a folder, without the dry run that `ml.load` makes."""
    bindings = ["Trainer.sequence_length = 16", "Trainer.batch_size = 4", *mesh]
    imported = imported_values(Folder(Path(folder)))
    return build_trainer(configuration.load((), bindings, root=_trainer_on_meta, imported=imported))


def compared(world, folders):
    """Returns the number of weights that were compared, and of those that are divided."""
    count = divided = 0
    for folder in folders:
        alone = trainer_of(folder).start(world.device)
        load(alone, folder)
        expected = named_weights(alone.model)
        for mesh in MESHES.values():
            trainer = trainer_of(folder, mesh)
            given = HuggingFaceStart(Folder(Path(folder)), "").given(trainer.model)  # not drawn before
            assert given >= {name for name, _ in trainer.model.named_parameters()}
            state = trainer.start(world.device, Layout.of(world, trainer.mesh_sizes(world.size)), given)
            load(state, folder)
            for name, tensor in named_weights(state.model).items():
                assert torch.equal(whole(tensor), expected[name]), f"{name} of {folder} on {mesh}"
                count += 1
                divided += whole(tensor) is not tensor
    return count, divided


def load(state, folder):
    HuggingFaceStart(Folder(Path(folder)), "").load(state, None, lambda line: None)


@pytest.fixture
def folders(tmp_path):
    """Folders with tensors as they are, with tensors stored together, and in half precision."""
    from hub_models import oracle_of, saved

    sizes = {"vocab_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12}
    models = {
        "Phi3": oracle_of("Phi3", sizes),
        "GPTNeoX": oracle_of("GPTNeoX", {"vocab_size": 256, "head_dim": ..., "num_key_value_heads": ...}),
        "half": oracle_of("Llama", sizes).bfloat16(),
    }
    return [saved(model, tmp_path / name) for name, model in models.items()]


def test_each_process_reads_its_part(folders):
    for count, divided in run_ranks(4, compared, folders):
        assert count > 80
        assert divided > count / 2
