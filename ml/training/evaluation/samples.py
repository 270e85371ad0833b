"""Text samples of the model during training."""

import contextlib
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ml.config import configurable, require, unused
from ml.data import Data
from ml.data.chat.forms import messages_of
from ml.data.chat.template import Chat
from ml.data.reading.records import BrokenRecord
from ml.distributed import ALONE, World
from ml.files import write_atomically
from ml.layers.checks import non_negative
from ml.models import LanguageModel
from ml.models.sampling import Sampler
from ml.run_files import read_records
from ml.training.errors import RunError, RunFailure
from ml.training.evaluation.continuations import EncodedPrompts, continue_texts, encode_prompts
from ml.training.precision import Precision


@configurable(neutral=True)
class Samples:
    """Generates a continuation of each prompt with a fixed seed, so that only the model changes between samples.

    Sampling does not affect training: the weights are bitwise those of a run without samples.

    Args:
        every: Steps between two samples. The last step always samples; None samples there only.
        prompts: One prompt or several: texts to continue, of which an empty one starts a document; or conversations to
            answer with the chat template of the data, each a list of messages.
        num_tokens: Maximum number of new tokens per prompt.
        temperature: Divides the logits before sampling; 0 is greedy.
        top_k: Samples from the k most likely tokens; None from all.
        top_p: Samples from the smallest set of tokens with this total probability (nucleus sampling); None from all.
        min_p: Omits tokens with less than this fraction of the highest probability; None omits none.
        seed: Seed of the sampler.
    """

    def __init__(
        self,
        every: int | None = 500,
        prompts: str | list[str] | list[list[dict[str, Any]]] = "",
        num_tokens: int = 100,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        seed: int = 0,
    ):
        require(every is None or every > 0, "every", f"must be positive, not {every}")
        require(len(prompts) > 0 or isinstance(prompts, str), "prompts", "must contain at least one prompt")
        require(num_tokens > 0, "num_tokens", f"must be positive, not {num_tokens}")
        non_negative("temperature", temperature)
        require(top_k is None or top_k > 0, "top_k", f"must be positive, not {top_k}")
        require(top_p is None or 0.0 < top_p <= 1.0, "top_p", f"must be above 0 and at most 1, not {top_p}")
        require(min_p is None or 0.0 <= min_p <= 1.0, "min_p", f"must be from 0 to 1, not {min_p}")
        for name in ("top_k", "top_p", "min_p", "seed"):
            unused(temperature == 0.0, name, "temperature")
        self.every = every
        self.prompts = [prompts] if isinstance(prompts, str) else prompts
        self._prompts = [prompt if isinstance(prompt, str) else _chat(prompt) for prompt in self.prompts]
        self.num_tokens = num_tokens
        self.sampler = Sampler(temperature, top_k, top_p, min_p)
        self.seed = seed

    def is_due(self, step: int, num_steps: int) -> bool:
        """Returns True if a run of `num_steps` steps samples after `step`."""
        return step == num_steps or (self.every is not None and step % self.every == 0)

    def check(self, data: Data, model: LanguageModel) -> None:
        """Checks the prompts before the first step.

        Args:
            data: The data of the run, with its tokenizer and separator.
            model: The model of the run.

        Raises:
            RunError: A prompt cannot be encoded, or its continuation exceeds the positions of the model.
        """
        longest, limit = max(map(len, self._encoded(data).tokens)), model.max_sequence_length
        if limit is not None and longest + self.num_tokens > limit:
            raise RunError(
                f"Samples.num_tokens = {self.num_tokens} after a prompt of {longest} tokens is more than the {limit} "
                "positions of the model"
            )

    def draw(
        self,
        model: LanguageModel,
        data: Data,
        precision: Precision,
        device: torch.device,
        world: World = ALONE,
    ) -> Iterator[dict[str, Any]]:
        """Yields each prompt with its continuation; leaves the model in training mode. A collective call.

        Args:
            model: The model that is trained.
            data: The data of the run, with its tokenizer and separator.
            precision: The precision of the forward pass.
            device: The device of the model.
            world: The processes that hold the model.
        """
        encoded, ending = self._encoded(data)
        model.eval()
        try:
            # Compiled blocks would recompile for each length.
            with precision.autocast(device), torch.compiler.set_stance("force_eager"):
                continuations = continue_texts(
                    model,
                    data.tokenizer,
                    encoded,
                    self.num_tokens,
                    self.sampler,
                    self.seed,
                    ending=ending,
                    shared=None if world.size == 1 else world.broadcast,
                )
        finally:
            model.train()
        for prompt, continuation in zip(self.prompts, continuations, strict=True):
            yield {"prompt": prompt, "text": continuation.text}

    def _encoded(self, data: Data) -> EncodedPrompts:
        try:
            return encode_prompts(self._prompts, data)
        except ValueError as error:
            raise RunError(f"Samples.prompts: {error}") from error


def _chat(messages: list[dict[str, Any]]) -> Chat:
    try:
        return Chat(messages_of(messages, name="prompts"))
    except BrokenRecord as error:
        require(False, "prompts", f"contains messages that cannot be read: {error}")
        raise


def shown(record: dict[str, Any]) -> str:
    """Returns a sample as it is logged: a prompt with its continuation, or the answer to a conversation."""
    prompt = record["prompt"] if isinstance(record["prompt"], str) else ""
    return prompt + record["text"]


class SampleFile:
    """The file `samples.jsonl` of a run: one object per text, with the step."""

    def __init__(self, folder: Path):
        self.path = folder / "samples.jsonl"

    def append(self, record: dict[str, Any]) -> None:
        """Appends a line and closes the file.

        Raises:
            RunFailure: The file cannot be written.
        """
        with self._disk(), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def truncate(self, step: int) -> None:
        """Removes the samples after `step` and a line truncated by a crash.

        Raises:
            UserError: A line before them is damaged.
        """
        if not self.path.exists():
            return
        before = itertools.takewhile(lambda record: record["step"] <= step, self.records())
        kept = "".join(json.dumps(record) + "\n" for record in before)
        with self._disk():
            write_atomically(self.path, kept)

    def flush(self) -> None:
        """Flushes the file to disk."""
        if self.path.exists():
            with self._disk(), self.path.open("a") as file:
                os.fsync(file.fileno())

    def records(self) -> Iterator[dict[str, Any]]:
        """Returns all complete lines."""
        return read_records(self.path)

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunFailure(f"cannot write samples to {self.path}: {error.strerror}") from error
