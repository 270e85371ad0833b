"""Text generation with the model of a run. Importing this imports no torch."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypedDict

from ml.errors import ArgumentError, UserError

if TYPE_CHECKING:
    import torch

    from ml.data import Data
    from ml.data.chat.template import Chat
    from ml.models import LanguageModel
    from ml.training.checkpoints.policy import StepName
    from ml.training.evaluation.continuations import Continuation

NUM_TOKENS = 256
Messages: TypeAlias = Sequence[Mapping[str, Any]]


class GenerateOptions(TypedDict, total=False):
    """The options of `Run.generate` that do not change the type of its result."""

    num_tokens: int | None
    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    stop: str | Sequence[str]
    seed: int
    step: StepName
    average: bool
    device: str | torch.device | None
    show: Callable[[int, str], None] | None


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Settings of text generation, checked.

    Args:
        num_tokens: Most tokens of a text; None for 256, or what learned positions have room for.
        num_samples: Texts for each prompt.
        temperature: Divides the logits; 0 takes the most likely token.
        top_k: Draws from this many of the most likely tokens; None for all.
        top_p: Draws from the most likely tokens that together have this probability; None for all.
        min_p: Skips tokens with less than this part of the probability of the most likely one; None for no limit.
        stop: Texts before which to stop. The separator of documents always stops, and the end of an answer.
        seed: Seed of the draws. What is drawn for a prompt depends on the seed and its index alone.

    Raises:
        ArgumentError: A value is out of range.
    """

    num_tokens: int | None = None
    num_samples: int = 1
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    stop: Sequence[str] = ()
    seed: int = 0

    def __post_init__(self):
        fits = {
            "num_tokens": self.num_tokens is None or self.num_tokens > 0,
            "num_samples": self.num_samples > 0,
            "temperature": self.temperature >= 0,
            "top_k": self.top_k is None or self.top_k > 0,
            "top_p": self.top_p is None or 0 < self.top_p <= 1,
            "min_p": self.min_p is None or 0 <= self.min_p <= 1,
            "stop": all(self.stop),
        }
        for name, is_fine in fits.items():
            if not is_fine:
                raise ArgumentError(f"{{{name}}} cannot be %s", getattr(self, name))


def given_prompts(
    prompts: str | Sequence[str] | None,
    messages: Messages | Sequence[Messages] | None,
    tools: list[Any] | None = None,
) -> tuple[list[str] | list[Chat], bool]:
    """Returns the prompts of `Run.generate`, and whether there is a single one.

    Raises:
        UserError: There are both texts and messages, or neither; or the messages cannot be read.
    """
    if (prompts is None) == (messages is None):
        raise UserError("give prompts to continue or messages to answer, one of the two")
    if messages is None:
        assert prompts is not None
        if tools is not None:
            raise UserError("tools go with messages")
        return ([prompts], True) if isinstance(prompts, str) else (list(prompts), False)
    is_one = not messages or isinstance(messages[0], Mapping)
    several = [messages] if is_one else messages
    return [chat_of({"messages": _as_json(one), "tools": tools}) for one in several], is_one


def _as_json(messages: Any) -> Any:
    """Returns messages as a list of dicts; what is none is returned as it is."""
    if isinstance(messages, str) or not isinstance(messages, Sequence):
        return messages
    return [dict(message) if isinstance(message, Mapping) else message for message in messages]


def chat_of(value: Any, place: str = "the conversation") -> Chat:
    """Parses a conversation: a list of messages, or an object with `messages` and perhaps `tools`.

    Args:
        value: A JSON value.
        place: Where it comes from, for errors.

    Raises:
        UserError: It is neither.
    """
    from ml.data.chat.forms import conversation_of
    from ml.data.chat.messages import Completion
    from ml.data.chat.template import Chat
    from ml.data.reading.records import BrokenRecord

    try:
        conversation = conversation_of({"messages": value} if isinstance(value, list) else value)
    except BrokenRecord as error:
        raise UserError(f"{place} cannot be read: {error}") from error
    if isinstance(conversation.content, Completion):
        raise UserError(f"{place} cannot be read: a prompt with a completion has no messages")
    return Chat(conversation.content, conversation.tools)


class Generated(NamedTuple):
    """Texts of a model.

    Attributes:
        texts: The samples of the first prompt, then those of the next.
        seconds: Time that generation took, without loading the model.
    """

    texts: list[Continuation]
    seconds: float


def generate_texts(
    load: Callable[[], LanguageModel],
    data: Data,
    prompts: Sequence[str] | Sequence[Chat],
    settings: Generation,
    show: Callable[[int, str], None] | None = None,
) -> Generated:
    """Continues each prompt.

    Args:
        load: Gives the model, once the prompts are known to be right.
        data: The data of the run, for its tokenizer, its separator and its chat template.
        prompts: Texts to continue, of which an empty one starts a document; or conversations to answer.
        settings: How.
        show: Called with the index of a text and all of it that is certain, as it grows.

    Raises:
        UserError: A prompt cannot be continued, or not as far, or the run has no chat template.
    """
    from ml.models.generation import reason_for_full_pass
    from ml.models.sampling import Sampler
    from ml.training.evaluation.continuations import continue_texts, encode_prompts

    if not prompts:
        raise UserError("there is no prompt to continue")
    sampler = Sampler(settings.temperature, settings.top_k, settings.top_p, settings.min_p)
    try:
        encoded, ending = encode_prompts(prompts, data)
        encoded = [tokens for tokens in encoded for _ in range(settings.num_samples)]
        model = load()
        num_tokens = settings.num_tokens or _room(model.max_sequence_length, max(map(len, encoded)))
        if reason := reason_for_full_pass(model):
            print(reason, file=sys.stderr)
        begun = time.perf_counter()
        texts = continue_texts(
            model,
            data.tokenizer,
            encoded,
            num_tokens,
            sampler,
            settings.seed,
            stops=settings.stop,
            ending=ending,
            show=show,
        )
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error
    return Generated(texts, time.perf_counter() - begun)


def _room(limit: int | None, longest: int) -> int:
    """Tokens to draw by default: as many as learned positions have room for, one at least."""
    return NUM_TOKENS if limit is None else max(1, min(NUM_TOKENS, limit - longest))
