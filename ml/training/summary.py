"""Summary of training: optimizer, learning rate and memory of each group of parameters."""

from collections.abc import Sequence

from torch import nn

from ml.models.declarations import obstacle_to_flops
from ml.models.generation import reason_for_full_pass
from ml.models.kernels import kernels_taken
from ml.terminal import table
from ml.training.guide import Guide
from ml.training.optimizers import Assignment, state_bytes
from ml.training.preference import trains_adapters_alone
from ml.training.trainer import Trainer

FROZEN = "frozen model"
_HEADER = ("trained by", "peak", "lr_scale", "weight_decay", "tensors", "parameters", "names")
_SHOWN_NAMES = 2
_SHOWN_STEPS = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)  # fractions of the run


def summarize_training(trainer: Trainer) -> str:
    """Formats a table of the parameter groups, frozen parameters last, and the learning rate at some steps."""
    assignments = trainer.optimizer.assign(trainer.groups())
    rows = [_HEADER, *(_row(assignment) for assignment in assignments), *_frozen(trainer.model)]
    lines = table(rows, right=[name not in ("trained by", "names") for name in _HEADER])
    if not trainer.length.is_known:
        return "\n".join([*lines, "", "learning rate     unknown without the data, which tells the steps of an epoch"])
    steps = sorted({max(1, round(fraction * trainer.num_steps)) for fraction in _SHOWN_STEPS})
    rates = ", ".join(f"{trainer.learning_rate(step):.3g} at {step}" for step in steps)
    return "\n".join([*lines, "", f"learning rate     {rates}"])


def memory_of_training(trainer: Trainer, guide: Guide | None = None) -> dict[str, int]:
    """Returns the bytes of training besides weights and gradients, by purpose.

    Args:
        trainer: The settings of the run.
        guide: Its teacher or reference; None where it is not opened, of which only the size of a reference is known.
    """
    groups = trainer.groups()
    memory = {"optimizer state": state_bytes(trainer.optimizer, groups)}
    if trainer.weight_average is not None:
        averages = trainer.weight_average.start(groups).tensors().values()
        memory["average of the weights"] = sum(average.nbytes for average in averages)
    if guide is not None:
        memory |= {FROZEN: guide.num_bytes} if guide.num_bytes else {}
    elif trainer.preference is not None and not trains_adapters_alone(trainer.model):
        memory["reference"] = sum(parameter.nbytes for parameter in trainer.model.parameters())
    return memory


def notes(trainer: Trainer) -> list[str]:
    """Returns a note for each feature that is off because a layer does not declare it, with the missing declaration."""
    found = []
    if obstacle := obstacle_to_flops(trainer.model):
        found.append(f"mfu is not reported: {obstacle}")
    if trainer.samples is not None and (reason := reason_for_full_pass(trainer.model)):
        found.append(f"samples: {reason}")
    return found


def describe_kernels(trainer: Trainer, device: str) -> str | None:
    """Returns a line with the attention kernels of training; None for a model without attention.

    Args:
        trainer: The settings of the run.
        device: Type of the device, such as "cuda".
    """
    taken = kernels_taken(trainer.model, trainer.attention_pass(device))
    counts = [f"{kernel}: {len(paths)} layer{'s' if len(paths) > 1 else ''}" for kernel, paths in taken.items()]
    return f"attention on {device}  {', '.join(counts)}" if counts else None


def _row(assignment: Assignment) -> tuple[str, ...]:
    optimizer, group = assignment
    decay = group.decay(optimizer.weight_decay)
    settings = (f"{optimizer.learning_rate:g}", f"{group.lr_scale:g}", f"{decay:g}")
    return type(optimizer).__name__, *settings, *_counted(group.names, group.parameters)


def _frozen(model: nn.Module) -> list[tuple[str, ...]]:
    frozen = {name: parameter for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return [("nothing (frozen)", "", "0", "", *_counted(list(frozen), list(frozen.values())))] if frozen else []


def _counted(names: Sequence[str], parameters: Sequence[nn.Parameter]) -> tuple[str, str, str]:
    more = f", and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    count = sum(parameter.numel() for parameter in parameters)
    return str(len(names)), f"{count:,}", ", ".join(names[:_SHOWN_NAMES]) + more
