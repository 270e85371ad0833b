"""Forward and backward passes of micro-batches as CUDA graphs: one launch instead of one for each operation."""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ml.data import Batch
from ml.training.errors import RunError
from ml.training.step_sums import StepSums

_EAGER_PASSES = 2  # compile and set up libraries, which a graph cannot

AddGradients = Callable[[Batch, Tensor], StepSums]


def divisor_on(device: torch.device, num_units: int) -> Tensor:
    """The number that a loss is divided by as a scalar tensor, with which a graph divides too.

    By a number of the host, CUDA multiplies with its reciprocal, which may round to another last bit.
    """
    return torch.full((), num_units, dtype=torch.float32, device=device)


class GradientGraphs:
    """Computes the gradients of micro-batches, from the third of a shape on by replaying a CUDA graph.

    A graph repeats the launches of one pass on the same memory: inputs are copied to the place of those it was captured
    with. What the host decides in a pass is decided once. The first micro-batch of a step writes gradients, and others
    add to them, so these have separate graphs. Random numbers are drawn from the generator of the device as
    without a graph. Graphs are replayed one after the other, so they share the memory of activations.

    Args:
        device: The device of the model.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._graphs: dict[tuple[bool, Hashable], _Captured] = {}
        self._seen: dict[tuple[bool, Hashable], int] = {}

    def add_gradients(
        self, add: AddGradients, batch: Batch, num_units: int, parameters: Sequence[nn.Parameter]
    ) -> StepSums:
        """Adds the gradients of a micro-batch.

        Args:
            add: Adds the gradients of a batch on the device, its loss divided by a scalar tensor.
            batch: The micro-batch, on the host.
            num_units: The divisor of the loss.
            parameters: The trained parameters; none of them has a gradient at the first micro-batch of a step.

        Returns:
            The sums of the micro-batch. The next call overwrites them.

        Raises:
            RunError: A layer synchronizes, or does something else that a graph cannot.
        """
        is_first = all(parameter.grad is None for parameter in parameters)
        kind = (is_first, tuple((name, tensor.shape) for name, tensor in batch.inputs.items()))
        self._seen[kind] = self._seen.get(kind, 0) + 1
        has_memory = is_first or any(of_first for of_first, _ in self._graphs)  # that stays, for the gradients
        if self._seen[kind] <= _EAGER_PASSES or not has_memory:
            return add(batch.to(self._device), divisor_on(self._device, num_units))
        if kind not in self._graphs:
            self._graphs[kind] = self._captured(add, batch, parameters)
        return self._graphs[kind].replay(batch, num_units)

    def _captured(self, add: AddGradients, batch: Batch, parameters: Sequence[nn.Parameter]) -> "_Captured":
        pool = next((captured.graph.pool() for captured in self._graphs.values()), None)
        inputs, divisor = batch.empty_on(self._device), divisor_on(self._device, 1)
        graph = torch.cuda.CUDAGraph()
        try:
            # Threads that load data may allocate page-locked memory meanwhile.
            with torch.cuda.graph(graph, pool, capture_error_mode="thread_local"):
                sums = add(inputs, divisor)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            message = f"the forward and backward pass is no CUDA graph: {reason}; set Trainer.cuda_graphs = False"
            raise RunError(message) from error
        gradients = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
        return _Captured(graph, inputs, divisor, sums, gradients)


class _Captured(NamedTuple):
    """A graph with the memory of its inputs and outputs."""

    graph: torch.cuda.CUDAGraph
    inputs: Batch
    divisor: Tensor
    sums: StepSums
    gradients: list[tuple[nn.Parameter, Tensor]]

    def replay(self, batch: Batch, num_units: int) -> StepSums:
        for name, place in self.inputs.inputs.items():
            place.copy_(batch.inputs[name], non_blocking=True)
        self.divisor.fill_(num_units)
        for parameter, gradient in self.gradients:
            if parameter.grad is not None and parameter.grad is not gradient:  # of an eager pass, or another graph
                gradient.copy_(parameter.grad)
        self.graph.replay()
        for parameter, gradient in self.gradients:
            parameter.grad = gradient
        return self.sums
