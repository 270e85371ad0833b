"""Warnings before a run starts: too little memory, emulated products, synchronization, data that repeats too often."""

from collections.abc import Mapping

import torch

from ml.data import Dataset
from ml.distributed import MeshSizes
from ml.layers import Linear
from ml.models.summary import memory_of_model, size_text
from ml.training.device_limits import synchronizations_on
from ml.training.guide import Guide
from ml.training.memory import available_memory
from ml.training.products import warning_of_products
from ml.training.summary import FROZEN, memory_of_training
from ml.training.trainer import Trainer

MAX_EPOCHS = 10


def warnings_of(
    trainer: Trainer,
    device: torch.device | None,
    dataset: Dataset | None = None,
    sizes: MeshSizes | None = None,
    guide: Guide | None = None,
) -> list[str]:
    """Returns all warnings about a run.

    Args:
        trainer: The settings of the run; its model is on the meta device.
        device: The device to train on; None checks neither its memory nor its products.
        dataset: The open training data; None uses what is known before the data is opened.
        sizes: The mesh, over which the memory is divided; None for a single process.
        guide: The teacher or the reference, which every process holds whole; on the meta device before it is loaded.
    """
    num_parts = 1 if sizes is None else sizes.world_size // sizes.data_replicate
    whole = {**memory_of_model(trainer.model), **memory_of_training(trainer, guide)}
    needed = {name: size // (1 if name == FROZEN else num_parts) for name, size in whole.items()}
    if guide is not None and device is not None and _is_loaded(guide) and device.type == "cpu":
        needed.pop(FROZEN)  # the available memory of a CPU is that without the loaded model
    num_sequences = trainer.num_steps * trainer.batch_size
    if not trainer.length.is_known:
        epochs = {"": trainer.length.num_epochs or 0.0}
    elif dataset is None:
        epochs = trainer.data.epochs(num_sequences * trainer.sequence_length)
    else:
        epochs = dataset.epochs(num_sequences)
    of_device = [] if device is None else _warnings_of_device(trainer, device, needed)
    return [*of_device, *repetition_warnings(epochs)]


def _is_loaded(guide: Guide) -> bool:
    return guide.model is not None and not any(weight.is_meta for weight in guide.model.parameters())


def _warnings_of_device(trainer: Trainer, device: torch.device, needed: Mapping[str, int]) -> list[str]:
    """Returns the warnings about the device."""
    precision = trainer.precision
    of_products = warning_of_products(
        device, precision.compute_dtype, f"Trainer.precision = @{type(precision).__name__}"
    )
    kernels = {layer.kernel for layer in trainer.model.modules() if isinstance(layer, Linear) and layer.kernel}
    of_kernels = dict.fromkeys(kernel.warning(device) for kernel in kernels)
    found = (memory_warning(needed, available_memory(device), device), of_products, *of_kernels)
    synchronizations = synchronizations_on(trainer.model, trainer.attention_pass(device.type))
    return [*(warning for warning in found if warning is not None), *synchronizations]


def memory_warning(needed: Mapping[str, int], available: int | None, device: torch.device) -> str | None:
    """Returns a warning if a run needs more memory than available.

    Args:
        needed: Required bytes by purpose.
        available: Available bytes; None if unknown.
        device: The device to train on.

    Returns:
        The warning, or None if the run fits or the available memory is unknown.
    """
    total = sum(needed.values())
    if available is None or total <= available:
        return None
    return (
        f"the run needs {size_text(total)} ({', '.join(needed)}) before any activation, "
        f"and {device.type} has {size_text(available)}: it will run out of memory"
    )


def repetition_warnings(epochs: Mapping[str, float]) -> list[str]:
    """Returns a warning for each part of the data that is read more than `MAX_EPOCHS` times.

    Repeated tokens are worth about as much as new ones for up to four epochs, and far less after that (Muennighoff et
    al., 2023, arXiv:2305.16264).

    Args:
        epochs: Number of passes over each part of the data, by name; "" is the whole.
    """
    return [
        f"the run reads {f'the part {name!r} of its data' if name else 'its data'} {times:.0f} times, "
        f"and repeated text soon teaches nothing new: give it more data or fewer steps"
        for name, times in epochs.items()
        if times > MAX_EPOCHS
    ]
