"""Contents of checkpoints, read by torch's converter."""

import tempfile
from pathlib import Path

import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from ml.training.checkpoints.policy import open_checkpoint
from ml.training.checkpoints.weight_files import read_weights
from ml.training.metrics.throughput import MACHINE_METRICS


def trained_model(trainer, folder, step=None):
    """The model with the weights of a checkpoint, the newest by default."""
    model = trainer.start(torch.device("cpu")).model
    read_weights(open_checkpoint(folder.checkpoints, step), model)
    return model


def untimed(records):
    """Returns records of metrics without values that depend on time."""
    return [{key: value for key, value in record.items() if key not in MACHINE_METRICS} for record in records]


def saved_tensors(checkpoint):
    """All tensors of a checkpoint by name: "model/...", "optimizer/...", ..."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "all.pt")
        dcp_to_torch_save(checkpoint, file)
        return flat(torch.load(file))


def saved_bits(checkpoint):
    """Returns their types, shapes and bytes."""
    return {
        name: (tensor.dtype, tuple(tensor.shape), tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        for name, tensor in saved_tensors(checkpoint).items()
    }


def flat(tree, prefix=""):
    """The converter makes dicts of dicts of some names."""
    if isinstance(tree, torch.Tensor):
        return {prefix: tree}
    return {name: tensor for key, value in tree.items() for name, tensor in flat(value, f"{prefix}{key}").items()}
