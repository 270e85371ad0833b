"""Tensor parallel: heads, widths and the vocabulary of a model divided over one axis of the mesh.

Parameters are stored as DTensors and shown as local tensors while a layer computes, so no layer knows of it (see
`ml.distributed.local`). How each kind of layer is divided is told by its rule in `ml.distributed.rules`.
"""

from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from ml.distributed.local import Stream, TensorAxis
from ml.distributed.mesh import MeshError
from ml.distributed.rules import divide, misfits
from ml.models.language_model import LanguageModel


def tensor_parallel(model: LanguageModel, mesh: DeviceMesh, *, sequence: bool, is_compiled: bool = False) -> None:
    """Divides a model over the tensor axis: every parameter becomes a DTensor on `mesh` under its name.

    Args:
        model: On the meta device, after the cut of the pipeline and before FSDP. Methods of its modules are replaced.
        mesh: The axis, one-dimensional.
        sequence: Divides the residual stream along time where that is possible.
        is_compiled: The `forward` of each block was replaced by a compiled one, which no DTensor may enter.

    Raises:
        MeshError: The model does not fit.
    """
    if problems := tensor_misfits(model, mesh.size()):
        raise MeshError("\n".join(problems))
    if sequence and (obstacle := obstacle_to_sequence(model)):
        raise MeshError(obstacle)
    paths = {module: path for path, module in model.named_modules()}
    divide(model, TensorAxis(mesh, Stream(sequence), is_compiled, paths))


def tensor_misfits(model: nn.Module, size: int) -> list[str]:
    """Returns why the model cannot be divided over `size` ranks, with the place; equal problems once."""
    if size == 1:
        return []
    found: dict[str, list[str]] = {}
    for path, problem in misfits(model, size):
        found.setdefault(problem, []).append(path)
    return [f"{problem} {_places(paths)}" for problem, paths in found.items()]


def obstacle_to_sequence(model: LanguageModel) -> str | None:
    """Returns why the residual stream cannot be divided along time; None where it can."""
    if model.multi_token is not None:
        kind = type(model.multi_token).__name__
        return f"Mesh.sequence: multi_token ({kind}) shifts along time, which is divided over Mesh.tensor"
    if model.tokens_per_image:
        return f"Mesh.sequence: {type(model).__name__} places images along time, which is divided over Mesh.tensor"
    return None


def _places(paths: list[str]) -> str:
    others = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"(in {paths[0]}{others})" if paths[0] else ""
