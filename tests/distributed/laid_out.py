"""Small models laid out over the ranks of a test, without `parallelize`."""

from quick_trainers import quick_trainer
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ml.blocks import BlockSequence

# A vocabulary that no number of ranks divides, and a rank without a part of a norm of 5 entries.
MODEL = [
    "LanguageModel.vocab_size = 257",
    "LanguageModel.hidden_size = 20",
    "Attention.num_heads = 2",
    "decoder/Repeat.num_blocks = 2",
    "GatedMLP.intermediate_size = 26",
    "Linear.bias = True",
    "Linear.weight_initialization = @scaled_normal",
    "DecoderBlock.mlp = @MixtureOfExperts",
    "MixtureOfExperts.num_experts = 2",
    "MixtureOfExperts.router = @SigmoidRouter",
]


def model_of(bindings=()):
    return quick_trainer(bindings, common=MODEL).model


def fsdp(model, mesh):
    for sequence in [module for module in model.modules() if isinstance(module, BlockSequence)]:
        for block in sequence.blocks:
            fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def split_over_tensor(model, mesh):
    """Splits matrices by rows or columns, unevenly too, and replicates the rest; `DTensor`s on one dimension."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and not isinstance(parameter, DTensor):
                split = Shard(parameter.shape[0] % 2) if parameter.ndim == 2 else Replicate()
                placed = distribute_tensor(parameter.detach(), mesh, [split], src_data_rank=None)
                module._parameters[name] = nn.Parameter(placed, parameter.requires_grad)


def without_expert_of_other_ranks(model, world):
    for module in model.modules():
        module._modules.pop(f"expert_{1 - world.rank % 2}", None)


def lay_out(model, world, layout):
    if layout == "fsdp":
        fsdp(model, init_device_mesh("cpu", (world.size,)))
    elif layout == "hsdp":
        fsdp(model, init_device_mesh("cpu", (2, world.size // 2), mesh_dim_names=("replicate", "shard")))
    elif layout == "tensor":
        split_over_tensor(model, init_device_mesh("cpu", (world.size,)))
    elif layout == "fsdp x tensor":
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("fsdp", "tensor"))
        split_over_tensor(model, mesh["tensor"])
        fsdp(model, mesh["fsdp"])
    elif layout == "experts":
        without_expert_of_other_ranks(model, world)
    elif layout == "stages":
        vars(model)["_modules"].pop("head" if world.rank else "embeddings")
    return model


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class DispatchCount(TorchDispatchMode):
    """Counts operations on `DTensor`s in its body."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(issubclass(one, DTensor) for one in types):
            self.number += 1
        return function(*args, **(kwargs or {}))
