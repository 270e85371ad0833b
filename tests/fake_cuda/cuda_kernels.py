"""Operations of torch that have a CUDA kernel, from the table that torch is built from."""

import functools
import re
from importlib.resources import files
from typing import Any

import torch

_FOR_CUDA = (
    "CUDA",
    "CompositeExplicitAutograd",
    "CompositeExplicitAutogradNonFunctional",
    "CompositeImplicitAutograd",
)


@functools.cache
def has_cuda_kernel(operation: Any) -> bool:
    """Returns whether an operator's overload can run on CUDA, in some dtype."""
    name = operation.name()
    if operation.namespace == "aten" and (known := _table().get(name.removeprefix("aten::"))) is not None:
        return known
    return any(torch._C._dispatch_has_kernel_for_dispatch_key(name, key) for key in _FOR_CUDA)


@functools.cache
def is_composite(operation: Any) -> bool:
    """Returns whether an operator's overload is made of others."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(operation.name(), "CompositeImplicitAutograd")


@functools.cache
def _table() -> dict[str, bool]:
    """Reads from `native_functions.yaml` which operators have a CUDA kernel: their own, a composite or a delegate's."""
    text = (files("torchgen") / "packaged/ATen/native/native_functions.yaml").read_text("utf-8")
    found, delegates = {}, {}
    for entry in re.split(r"^- func: ", text, flags=re.MULTILINE)[1:]:
        name = entry[: entry.index("(")]
        if delegate := re.search(r"^  structured_delegate: (\S+)", entry, re.MULTILINE):
            delegates[name] = delegate[1]
        dispatch = re.search(r"^  dispatch:[^\n]*\n((?:    [^\n]*\n|\s*#[^\n]*\n)*)", entry, re.MULTILINE)
        keys = set() if dispatch is None else set(re.findall(r"[\w]+(?=[\w, ]*:)", dispatch[1]))
        is_composite = dispatch is None
        is_generated = "\n  ufunc_inner_loop:" in entry  # for the CPU and for CUDA
        found[name] = is_composite or is_generated or not keys.isdisjoint(_FOR_CUDA)
    return found | {name: found[name] or found[delegate] for name, delegate in delegates.items()}
