"""A run as a model of the lm-evaluation-harness (Gao et al. 2021), which the extra `harness` installs."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from ml.data.sequences.document_separator import Separator
from ml.data.tokenizers import Tokenizer
from ml.errors import UserError
from ml.models.language_model import LanguageModel
from ml.models.sampling import Sampler
from ml.training.evaluation.continuations import continue_texts
from ml.training.evaluation.scoring import Piece, Score, score, windows
from ml.training.precision import Precision

_MOST_TOKENS = 256  # that are generated where a task does not say
_MAX_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_SAMPLING = ("temperature", "top_k", "top_p", "min_p")


class HarnessModel(LM):
    """Answers what tasks ask: how likely a text is, and what the model goes on with.

    Each request is by itself, whatever else is asked: they are sorted by length and answered in batches. What is longer
    than `context` tokens loses its beginning. A text without a context stands behind a separator, as in training.

    Raises:
        UserError: The run has no separator.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        separator: Separator,
        *,
        context: int,
        batch_size: int,
        precision: Precision,
        device: torch.device,
    ):
        super().__init__()
        self._model = model
        self._tokenizer = tokenizer
        self._separator = separator
        self._start = separator.tokens.astype(np.int64)[-1:]
        if len(self._start) == 0:
            raise UserError("the data of the run has no separator, which tasks need as the start of a text")
        self._context = context
        self._batch_size = batch_size
        self._precision = precision
        self._on = device

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Of each (context, continuation): the log likelihood of the second, and whether it is the likeliest."""
        parts = [self._pieces(*self._pair(*request.args)) for request in requests]
        return [(self._sum(scores), all(one.is_greedy for one in scores)) for scores in self._scores(parts)]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Of each (text,): its log likelihood, every token predicted once, in windows that do not overlap but for the
        last, which reaches back as far as the others.
        """
        texts = [np.concatenate((self._start, self._tokens(request.args[0]))) for request in requests]
        parts = [list(windows(text, self._context, self._context)) for text in texts]
        return [self._sum(scores) for scores in self._scores(parts)]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Of each (context, options): what the model goes on with, up to a stop text, the separator or a length."""
        texts = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(index)
        for indices in groups.values():
            options = dict(requests[indices[0]].args[1])
            stops, num_tokens, sampler = _generation_options(options)
            room = max(1, self._context - num_tokens)
            prompts = {index: self._prompt(requests[index].args[0])[-room:] for index in indices}
            for batch in self._by_length(prompts):
                num_new = self._num_new(num_tokens, max(len(prompts[index]) for index in batch))
                made = continue_texts(
                    self._model,
                    self._tokenizer,
                    [prompts[index].tolist() for index in batch],
                    num_new,
                    sampler,
                    stops=stops,
                    separator=self._separator,
                )
                for index, continuation in zip(batch, made, strict=True):
                    texts[index] = continuation.text
        return texts

    def _tokens(self, text: str) -> np.ndarray:
        return self._tokenizer.encode(text).astype(np.int64)

    def _prompt(self, text: str) -> np.ndarray:
        return self._tokens(text) if text else self._start

    def _pair(self, context: str, continuation: str) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of both: those of the whole text, cut behind those of the context.

        White space at the end of the context goes to the continuation, where words begin with it.
        """
        stripped = context.rstrip()
        context, continuation = stripped, context[len(stripped) :] + continuation
        if not context:
            return self._start, self._tokens(continuation)
        before = self._tokens(context)
        return before, self._tokens(context + continuation)[len(before) :]

    def _pieces(self, before: np.ndarray, text: np.ndarray) -> list[Piece]:
        """One piece, without what is too long ago; several where the text alone is longer than the context."""
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
        """Fewer than were asked for where learned positions end."""
        limit = self._model.max_sequence_length
        return num_tokens if limit is None else max(1, min(num_tokens, limit - longest))


def _generation_options(options: dict[str, Any]) -> tuple[list[str], int, Sampler]:
    """Stop texts, the most tokens and the sampler of a task.

    Raises:
        UserError: It asks for something else.
    """
    stops = options.pop("until", None) or []
    lengths = [options.pop(name) for name in _MAX_TOKENS if name in options]
    sampling = {name: options.pop(name) for name in _SAMPLING if name in options}
    do_sample = options.pop("do_sample", sampling.get("temperature", 0.0) > 0.0)
    if options:
        raise UserError(f"the task generates with {', '.join(options)}, which is not supported")
    sampler = Sampler(**{"temperature": 1.0, **sampling}) if do_sample else Sampler(0.0)
    return [stops] if isinstance(stops, str) else list(stops), lengths[0] if lengths else _MOST_TOKENS, sampler
