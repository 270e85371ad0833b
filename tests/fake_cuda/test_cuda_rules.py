"""The check of CUDA without CUDA finds each kind of fault, and refuses nothing that works."""

import pytest
import torch
from cuda_kernels import has_cuda_kernel
from cuda_rules import RuleBroken
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorDeviceMismatchError

CUDA = torch.device("cuda", 0)

FAULTS = {
    "a value that the host reads": lambda x: x.sum().item(),
    "a number as an index": lambda x: x[0, x[0, 0].long()],
    "a condition": lambda x: 1 if x.sum() > 0 else 2,
    "a list": lambda x: x[0].tolist(),
    "a copy to the CPU": lambda x: x.cpu(),
    "a copy to memory that is not pinned": lambda x: torch.empty(3, 4).copy_(x, non_blocking=True),
    "a copy to pinned memory that is awaited": lambda x: torch.empty(3, 4, pin_memory=True).copy_(x),
    "a copy from the CPU": lambda x: x + torch.ones(3, 4).to(CUDA),
    "a copy from the CPU that is not pinned": lambda x: x + torch.ones(3, 4).to(CUDA, non_blocking=True),
    "numbers of the host": lambda x: x + torch.tensor([1.0, 2.0, 3.0, 4.0], device=CUDA),
    "indices of what is true": lambda x: (x > 0).nonzero(),
    "what is true": lambda x: x[x > 0],
    "setting what is true": lambda x: x.index_put((x > 0,), x.new_ones(12)),
    "a mask": lambda x: x.masked_select(x > 0),
    "equality": lambda x: torch.equal(x, x + 1),
    "counts": lambda x: x.long().flatten().bincount(),
    "repetitions": lambda x: x.repeat_interleave(x.new_ones(3, dtype=torch.int64), dim=0),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_synchronization_is_found(cuda, fault):
    with cuda(), pytest.raises(RuleBroken, match="which synchronizes"):
        fault(torch.ones(3, 4, device=CUDA))


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if "CUDA" not in fault.__code__.co_names])
def test_on_the_cpu_it_is_none(cuda, name):
    with cuda():
        FAULTS[name](torch.ones(3, 4))


class ReadsInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * gradient.max().item()


def test_a_synchronization_in_the_backward_pass_is_found(cuda):
    with cuda(), pytest.raises(RuleBroken):
        ReadsInBackward.apply(torch.ones(3, device=CUDA, requires_grad=True)).sum().backward()


@torch.library.custom_op("juniper::reads_for_test", mutates_args=())
def reads(x: torch.Tensor) -> torch.Tensor:
    return x * x.max().item()


reads.register_fake(torch.empty_like)


def test_a_synchronization_inside_an_operator_of_juniper_is_found(cuda):
    with cuda(), pytest.raises(RuleBroken):
        reads(torch.ones(3, device=CUDA))


@pytest.mark.parametrize("change", [lambda x: x + torch.ones(4), lambda x: torch.cat([x, torch.ones(3, 4)])])
def test_a_mix_of_devices_is_found(cuda, change):
    with cuda(), pytest.raises((FakeTensorDeviceMismatchError, RuntimeError), match="device"):
        change(torch.ones(3, 4, device=CUDA))


def test_an_operation_of_the_cpu_alone_is_found(cuda):
    with cuda(), pytest.raises(RuleBroken, match=r"aten\.histogram\.bin_ct has no CUDA kernel"):
        torch.histogram(torch.ones(3, device=CUDA), 4)


@torch.library.custom_op("juniper_test::on_cpu", mutates_args=(), device_types="cpu")
def on_cpu(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


on_cpu.register_fake(torch.empty_like)


def test_an_operator_registered_for_the_cpu_alone_is_found(cuda):
    with cuda(), pytest.raises(RuleBroken, match=r"juniper_test\.on_cpu"):
        on_cpu(torch.ones(3, device=CUDA))


@pytest.mark.parametrize(
    ("operation", "has_kernel"),
    [
        ("mm.default", True),
        ("add.Tensor", True),  # generated
        ("sum.dim_IntList", True),  # of its structured delegate
        ("_softmax.default", True),
        ("_scaled_dot_product_flash_attention.default", True),
        ("_scaled_dot_product_flash_attention_for_cpu.default", False),
        ("mkldnn_linear.default", False),
        ("histogram.bin_ct", False),
    ],
)
def test_kernels_are_those_of_the_table_of_torch(operation, has_kernel):
    packet, overload = operation.split(".")
    assert has_cuda_kernel(getattr(getattr(torch.ops.aten, packet), overload)) is has_kernel


def test_a_step_without_fault_passes(cuda):
    with cuda() as rules:
        model = nn.Sequential(nn.Linear(4, 8, device=CUDA), nn.GELU(), nn.Linear(8, 2, device=CUDA))
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        batch = torch.ones(3, 4).pin_memory().to(CUDA, non_blocking=True)
        with torch.autocast("cuda", torch.bfloat16):
            output = model(batch)
        assert (output.dtype, output.device) == (torch.bfloat16, CUDA)
        output.float().square().mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        host = torch.empty(8, 4, pin_memory=True).copy_(model[0].weight.detach(), non_blocking=True)
        assert host.device.type == "cpu"
        assert rules.is_pinned(host)


def test_the_device_is_gone_afterward(cuda):
    with cuda():
        pass
    with pytest.raises((RuntimeError, AssertionError), match="CUDA"):
        torch.ones(1, device=CUDA)
    assert (torch.ones(2, requires_grad=True) * 2).sum().backward() is None
