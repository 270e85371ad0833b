"""Dry run of the model on fake tensors, which finds modules that do not fit their place."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ml.blocks.sequence import BlockSequence
from ml.config.built import Built
from ml.config.errors import Problem
from ml.config.failures import missing_attribute
from ml.config.scopes import compress
from ml.layers.attention_kernels import AutomaticAttention
from ml.layers.experts import Experts
from ml.layers.mixers import StochasticMixer
from ml.layers.mixers.softmax_mixer import SoftmaxMixer
from ml.layers.protocol import Mixer
from ml.layers.walk import named_modules
from ml.models import LanguageModel
from ml.training.placeholders import PlaceholderGuide, placeholder_batch
from ml.training.precision import cast_parameters
from ml.training.trainer import Trainer

_FEW = 8  # tokens; keeps Python loops over the sequence short
_CPU = torch.device("cpu")
_HERE: dict[str, Any] = {"device": "cpu", "needs_gradient": True}
_NOT_JUDGED = (
    NotImplementedError,
    fake_tensor.DataDependentOutputException,
    fake_tensor.DynamicOutputShapeException,
    fake_tensor.UnsupportedFakeTensorException,
    fake_tensor.UnsupportedOperatorException,
)
_OF_THE_TRACE = ("data pointer", "numpy", "__format__")  # in messages about tensors without values

Path = tuple[str, ...]


class Misfit(NamedTuple):
    """A module that fails.

    Attributes:
        path: The path of the module in the model.
        message: The error.
    """

    path: Path
    message: str


def rehearse(trainer: Trainer, built: Built) -> list[Problem]:
    """Passes a small batch of fake tensors through the loss of a model that is not used afterward.

    No value is computed, no memory allocated and no random number drawn. One of several equal blocks is run. A module
    that fails on a few tokens is tried at the sequence length of the run before it is refused. A module that reads the
    values of its tensors cannot be checked and is not refused.

    Args:
        trainer: The built trainer; its model is changed.
        built: The record of its construction.

    Returns:
        A problem for each module that does not fit, located at the binding that chose it.
    """
    cast_parameters(trainer.model, trainer.precision.parameter_dtype)
    stage = _Stage(trainer.model, built)
    misfits = stage.misfits(trainer, min(_FEW, trainer.sequence_length))
    if misfits and trainer.sequence_length > _FEW:
        confirmed = {misfit.path for misfit in stage.misfits(trainer, trainer.sequence_length)}
        misfits = [misfit for misfit in misfits if misfit.path in confirmed]
    return [built.problem(misfit.path, stage.describe(misfit)) for misfit in misfits]


class _Stage:
    """A model with one of each kind of block, whose failures are recorded."""

    def __init__(self, model: nn.Module, built: Built):
        self.model = model
        paths = {module: tuple(name.split(".")) if name else () for name, module in named_modules(model)}
        self.equal: dict[Path, list[Path]] = {}
        self.watched: list[_Watched] = []
        self._returned: dict[nn.Module, tuple[nn.Module, object]] = {}
        self._keep_one_of_each_kind(paths, built)
        self.paths = {module: paths[module] for _, module in named_modules(model) if module in paths}
        for module in model.modules():
            if isinstance(module, Experts):
                module.grouped = False  # a grouped product of shapes alone exists in bfloat16 only
            if isinstance(module, SoftmaxMixer) and module.kernel.obstacle(module.task._replace(**_HERE)):
                module.kernel = AutomaticAttention()  # in place of a kernel of a GPU
        for module in list(model.modules()):
            for child in module.children():
                child.register_forward_hook(lambda child, _, output, parent=module: self._note(parent, child, output))

    def _keep_one_of_each_kind(self, paths: dict[nn.Module, Path], built: Built) -> None:
        sequences = [module for module in paths if isinstance(module, BlockSequence)]
        blocks = {paths[block]: block for sequence in sequences for block in sequence.blocks}
        holders = {path: self.model.get_submodule(".".join(path[:-1])) for path in blocks}
        kinds: dict[tuple, list[Path]] = {}
        absent = _Absent()
        for path, kind in built.kinds(blocks).items():
            kinds.setdefault((path[:-1], kind), []).append(path)
        for first, *others in kinds.values():
            self.equal[first] = [first, *others]
            for path in others:
                holders[path]._modules[path[-1]] = absent
            if not isinstance(blocks[first], BlockSequence):
                self.watched.append(_Watched(blocks[first]))
                holders[first]._modules[first[-1]] = self.watched[-1]

    def _note(self, parent: nn.Module, child: nn.Module, output: object) -> None:
        self._returned[parent] = (child, output)

    def misfits(self, trainer: Trainer, num_tokens: int) -> list[Misfit]:
        """Runs the model on sequences of `num_tokens`, once for each choice of stochastic mixers; returns failures."""
        found: dict[Path, Misfit] = {}
        drawn = [module for module in self.paths if isinstance(module, StochasticMixer)]
        for number in range(max((len(mixer.names) for mixer in drawn), default=1)):
            for mixer in drawn:
                mixer.drawn = mixer.names[number % len(mixer.names)]
            for error in self._failures(trainer, num_tokens):
                if misfit := self._misfit(error):
                    found.setdefault(misfit.path, misfit)
        return list(found.values())

    def _failures(self, trainer: Trainer, num_tokens: int) -> Iterator[Exception]:
        for block in self.watched:
            block.failures.clear()
        try:
            _run(trainer, num_tokens)
        except Exception as error:  # any error of any part, user code among them
            yield error
        for block in self.watched:
            yield from block.failures

    def _misfit(self, error: Exception) -> Misfit | None:
        """Locates an error in the model; None if it does not come from the configuration."""
        message = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        message = message.replace("FakeTensor", "Tensor")
        if isinstance(error, _NOT_JUDGED) or any(word in str(error) for word in _OF_THE_TRACE):
            return None
        missing = missing_attribute(error)
        if missing and isinstance(missing.owner, nn.Module) and missing.owner in self.paths:
            part, wanted_by = type(missing.owner).__name__, type(missing.wanted_by).__name__
            if missing.owner is not missing.wanted_by:
                path = self.paths[missing.owner]
                return Misfit(path, f"{part}{{place}} has no `{missing.name}`, which {wanted_by} needs")
        module, is_call = self._innermost(error)
        name, path = type(module).__name__, self.paths[module]
        if is_call:
            return Misfit(path, f"{name}{{place}} cannot be called as its place calls it: {message}")
        if module in self._returned:
            child, output = self._returned[module]
            path, part = self.paths.get(child, path), type(child).__name__
            return Misfit(path, f"{part}{{place}} returned {_describe(output)}, after which {name} failed: {message}")
        return Misfit(path, f"{name}{{place}} failed: {message}")

    def _innermost(self, error: Exception) -> tuple[nn.Module, bool]:
        """Returns the innermost module of an error, and whether the call itself did not fit its signature."""
        found, is_call = self.model, False
        trace = error.__traceback__
        while trace is not None:
            owner = trace.tb_frame.f_locals.get("self")
            if isinstance(owner, nn.Module) and owner in self.paths:
                found = owner
                code = trace.tb_frame.f_code
                is_of_torch = code.co_filename == nn.modules.module.__file__ and code.co_name != "__getattr__"
                is_call = trace.tb_next is None and is_of_torch
            trace = trace.tb_next
        return found, is_call

    def describe(self, misfit: Misfit) -> str:
        """Returns the message of a misfit with all paths that have it."""
        path = misfit.path
        block = next((path[:end] for end in range(len(path), 0, -1) if path[:end] in self.equal), None)
        paths = [path] if block is None else [(*first, *path[len(block) :]) for first in self.equal[block]]
        place = f" at {', '.join(compress(paths))}" if path else ""
        return misfit.message.replace("{place}", place)


class _Absent(Mixer):
    """Placeholder of the blocks that equal an earlier one."""

    separates_documents = True  # the trainer has asked the block itself

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        return x


class _Watched(Mixer):
    """Records the failures of a block, so that the blocks after it run too."""

    separates_documents = True  # likewise

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block
        self.failures: list[Exception] = []

    def forward(self, x: Tensor, *others: Any) -> Tensor:
        try:
            return self.block(x, *others)
        except Exception as error:
            self.failures.append(error)
            return x


class _Loss(nn.Module):
    """The loss of a model as a callable module."""

    def __init__(self, model: LanguageModel):
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> Tensor:
        return self.model.loss(**inputs).total


def _run(trainer: Trainer, num_tokens: int) -> None:
    loss = _Loss(trainer.model)
    tensors = {
        **dict(loss.named_parameters(remove_duplicate=False)),
        **dict(loss.named_buffers(remove_duplicate=False)),
    }
    with _quiet(), FakeTensorMode(allow_non_fake_inputs=True), torch.random.fork_rng(devices=[]):
        traced = {id(tensor): _without_memory(tensor) for tensor in tensors.values()}
        weights = {name: traced[id(tensor)] for name, tensor in tensors.items()}
        inputs = _inputs(trainer, num_tokens)
        with trainer.precision.autocast(_CPU):
            torch.func.functional_call(loss, weights, kwargs=inputs)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences torch's log of failed operations, which the report covers."""
    logger = logging.getLogger(fake_tensor.__name__)
    was_disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = was_disabled


def _without_memory(tensor: Tensor) -> Tensor:
    traced = torch.empty(tensor.shape, dtype=tensor.dtype)
    return nn.Parameter(traced, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else traced


def _inputs(trainer: Trainer, num_tokens: int) -> dict[str, Any]:
    """Returns the arguments of the loss: tokens, and documents, images and a teacher if the run has them."""
    batch = placeholder_batch(trainer, min(2, trainer.micro_batch_size), num_tokens)
    guide = PlaceholderGuide.of(trainer)
    return batch.inputs if guide is None else {**batch.inputs, **guide.inputs(batch, trainer.model)}


def _describe(output: object) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    return f"a {type(output).__name__}"
