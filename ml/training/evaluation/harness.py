"""A run as a model of the lm-evaluation-harness (Gao et al., 2021), which the extra `harness` installs."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from ml.data.chat.encoding import ChatFormat
from ml.data.chat.forms import messages_of
from ml.data.chat.template import Chat
from ml.data.reading.records import BrokenRecord
from ml.data.sequences.document_begin import Begin
from ml.data.sequences.document_separator import Separator
from ml.data.sequences.ending import Ending
from ml.data.tokenizers import Tokenizer
from ml.errors import UserError
from ml.models.language_model import LanguageModel
from ml.models.sampling import Sampler
from ml.training.evaluation.continuations import continue_texts
from ml.training.evaluation.scoring import Piece, Score, score, windows
from ml.training.precision import Precision

_MOST_TOKENS = 256  # generated where a task sets no limit
_MAX_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_SAMPLING = ("temperature", "top_k", "top_p", "min_p")


class HarnessModel(LM):
    """Answers the requests of tasks: log likelihoods and generated text.

    Requests are sorted by length and batched; a batch does not change a result. Text longer than `context` tokens is
    truncated on the left. A text without a context follows the begin of documents, as in training, and so does any text
    if documents have a begin token.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        separator: Separator,
        begin: Begin,
        chat: ChatFormat | None = None,
        *,
        context: int,
        batch_size: int,
        precision: Precision,
        device: torch.device,
    ):
        """Wraps a model for the harness.

        Args:
            model: The model, in evaluation mode.
            tokenizer: The tokenizer of the run.
            separator: The separator of documents, which ends generated text.
            begin: The begin of documents.
            chat: The tokens of conversations, for tasks with a chat template; None if the run has none.
            context: Maximum number of tokens that a prediction is conditioned on.
            batch_size: Sequences per forward pass.
            precision: The precision of the forward pass.
            device: The device of the model.

        Raises:
            UserError: The run has no begin of documents.
        """
        super().__init__()
        self._model = model
        self._tokenizer = tokenizer
        self._ending = Ending.of(separator)
        self._begin = begin
        self._chat = chat
        self._rendered: dict[str, np.ndarray] = {}  # tokens of the conversations that the harness knows as text
        self._start = begin.tokens.astype(np.int64)[-1:]
        if len(self._start) == 0:
            raise UserError(
                "the data of the run has no separator or begin token, which tasks need as the start of a text"
            )
        self._context = context
        self._batch_size = batch_size
        self._precision = precision
        self._on = device

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer, by which the harness distinguishes requests."""
        return type(self._tokenizer).__name__

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Returns the name of the chat template."""
        return None if self._chat is None else type(self._chat.template).__name__

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Returns a conversation as text; the requests with this text have the tokens of training.

        Args:
            chat_history: The messages.
            add_generation_prompt: False if the answer continues the last message.

        Raises:
            UserError: The run has no chat template, or it cannot render the messages.
        """
        if self._chat is None:
            raise UserError("the run has no chat template: it was not trained on conversations (ChatData)")
        try:
            tokens = self._chat.prompt(Chat(messages_of(chat_history))).astype(np.int64)
        except BrokenRecord as error:
            raise UserError(f"the task has messages that cannot be read: {error}") from error
        text = self._tokenizer.decode(tokens)
        if not np.array_equal(self._rendered.setdefault(text, tokens), tokens):
            raise UserError(f"two conversations of the task are the same text and not the same tokens: {text!r}")
        return text

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Returns the log likelihood of the continuation of each (context, continuation), and whether it is greedy."""
        parts = [self._pieces(*self._pair(*request.args)) for request in requests]
        return [(self._sum(scores), all(one.is_greedy for one in scores)) for scores in self._scores(parts)]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Returns the log likelihood of each (text,).

        Every token is predicted once, in windows of equal length; only the last window overlaps the one before it.
        """
        texts = [np.concatenate((self._start, self._tokens(request.args[0]))) for request in requests]
        parts = [list(windows(text, self._context, self._context)) for text in texts]
        return [self._sum(scores) for scores in self._scores(parts)]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Returns the continuation of each (context, options), up to a stop string, the separator or a length."""
        texts = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            is_chat = request.args[0] in self._rendered
            groups.setdefault(repr((is_chat, sorted(request.args[1].items()))), []).append(index)
        for indices in groups.values():
            options = dict(requests[indices[0]].args[1])
            stops, num_tokens, sampler = _generation_options(options)
            room = max(1, self._context - num_tokens)
            prompts = {index: self._prompt(requests[index].args[0])[-room:] for index in indices}
            for batch in self._by_length(prompts):
                is_chat = requests[batch[0]].args[0] in self._rendered
                num_new = self._num_new(num_tokens, max(len(prompts[index]) for index in batch))
                made = continue_texts(
                    self._model,
                    self._tokenizer,
                    [prompts[index].tolist() for index in batch],
                    num_new,
                    sampler,
                    stops=stops,
                    ending=self._chat.ending if is_chat and self._chat is not None else self._ending,
                )
                for index, continuation in zip(batch, made, strict=True):
                    texts[index] = continuation.text
        return texts

    def _tokens(self, text: str) -> np.ndarray:
        return self._tokenizer.encode(text).astype(np.int64)

    def _prompt(self, text: str) -> np.ndarray:
        if text in self._rendered:
            return self._rendered[text]
        return self._begin.before(self._tokens(text)) if text else self._start

    def _pair(self, context: str, continuation: str) -> tuple[np.ndarray, np.ndarray]:
        """Encodes context and continuation as one text, split after the tokens of the context.

        Trailing white space of the context moves to the continuation, because words begin with it. The continuation of
        a conversation is an answer, encoded as in training.
        """
        if context in self._rendered and self._chat is not None:
            return self._rendered[context], self._chat.answer(continuation).astype(np.int64)
        stripped = context.rstrip()
        context, continuation = stripped, context[len(stripped) :] + continuation
        if not context:
            return self._start, self._tokens(continuation)
        before = self._tokens(context)
        return self._begin.before(before), self._tokens(context + continuation)[len(before) :]

    def _pieces(self, before: np.ndarray, text: np.ndarray) -> list[Piece]:
        """Returns one piece truncated on the left, or several if the text alone is longer than the context."""
        if len(text) > self._context:
            return list(windows(np.concatenate((before[-1:], text)), self._context, self._context))
        whole = np.concatenate((before, text))[-self._context - 1 :]
        return [Piece(whole, len(text))] if len(text) else []

    def _scores(self, parts: Sequence[list[Piece]]) -> Iterator[list[Score]]:
        pieces = [piece for part in parts for piece in part]
        scores = iter(score(self._model, pieces, self._batch_size, self._precision, self._on))
        for part in parts:
            yield [next(scores) for _ in part]

    def _sum(self, scores: list[Score]) -> float:
        return sum(one.log_likelihood for one in scores)

    def _by_length(self, prompts: dict[int, np.ndarray]) -> Iterator[list[int]]:
        order = sorted(prompts, key=lambda index: -len(prompts[index]))
        for first in range(0, len(order), self._batch_size):
            yield order[first : first + self._batch_size]

    def _num_new(self, num_tokens: int, longest: int) -> int:
        """Limits the number of new tokens to the learned positions of the model."""
        limit = self._model.max_sequence_length
        return num_tokens if limit is None else max(1, min(num_tokens, limit - longest))


def _generation_options(options: dict[str, Any]) -> tuple[list[str], int, Sampler]:
    """Returns the stop strings, the maximum number of tokens and the sampler of a task.

    Raises:
        UserError: The task uses another option.
    """
    stops = options.pop("until", None) or []
    lengths = [options.pop(name) for name in _MAX_TOKENS if name in options]
    sampling = {name: options.pop(name) for name in _SAMPLING if name in options}
    do_sample = options.pop("do_sample", sampling.get("temperature", 0.0) > 0.0)
    if options:
        raise UserError(f"the task generates with {', '.join(options)}, which is not supported")
    sampler = Sampler(**{"temperature": 1.0, **sampling}) if do_sample else Sampler(0.0)
    return [stops] if isinstance(stops, str) else list(stops), lengths[0] if lengths else _MOST_TOKENS, sampler
