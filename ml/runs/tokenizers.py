"""The tokenizer of a run: what it is taken from, and what it has to equal."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from ml.building import build_trainer, load
from ml.errors import UserError

if TYPE_CHECKING:
    from ml.data import Data
    from ml.data.tokenizers import Tokenizer
    from ml.training import StartingPoint, Trainer

logger = logging.getLogger(__name__)


def tokenizer_of_run(run: str | Path) -> Tokenizer | None:
    """Returns the tokenizer of a run: the copy in its folder, or, of release 0.1.0, that of its configuration.

    Args:
        run: The folder of the run, of its checkpoints, or of one of them.

    Returns:
        The tokenizer; None if it is not known.
    """
    from ml.training.run_tokenizer import read_run_tokenizer

    kept = read_run_tokenizer(Path(run))
    if kept is not None:
        return kept
    try:
        return build_trainer(load(Path(run) / "operative_config.gin")).data.tokenizer
    except UserError:
        return None


def lend_tokenizer(trainer: Trainer, run: Path) -> None:
    """Gives data without its own tokenizer that of the run in a folder, or that of the run it starts from.

    Args:
        trainer: The trainer of the run.
        run: The folder of the run, which may be new.
    """
    from ml.training.run_tokenizer import read_run_tokenizer

    @functools.cache
    def lent() -> Tokenizer | None:
        kept = read_run_tokenizer(run)
        return kept if kept is not None else _tokenizer_of_weights(trainer)

    trainer.data.lend_tokenizer(lent)


def use_kept_tokenizer(trainer: Trainer, run: Path) -> None:
    """Gives data with its own tokenizer the copy that the run in a folder keeps.

    Args:
        trainer: The trainer of the run.
        run: The folder of the run.
    """
    from ml.training.run_tokenizer import read_run_tokenizer

    kept = read_run_tokenizer(run)
    if kept is not None:
        trainer.data.use_tokenizer(kept)


def known_tokenizer(data: Data) -> Tokenizer | None:
    """Returns the tokenizer of data; None if its files are missing."""
    from ml.data import DataError

    try:
        tokenizer = data.tokenizer
        _ = tokenizer.identity
    except DataError:
        return None
    return tokenizer


def fit_initial_weights(trainer: Trainer, initial: StartingPoint, tokenizer: Tokenizer) -> None:
    """Compares the tokenizer of a run with that of the weights that it starts from.

    Raises:
        DataError: They differ; the message names both.
    """
    earlier = _tokenizer_of_weights(trainer)
    if earlier is None:
        logger.warning("%s has no tokenizer to compare with that of the data", initial.place)
    else:
        initial.fit_tokenizer(tokenizer, earlier)


def require_tokenizer_of_run(run: Path, tokenizer: Tokenizer) -> None:
    """Requires that the data of a run that is resumed has the tokenizer with which it was begun.

    Raises:
        DataError: It has another one; the message names both.
    """
    from ml.data import DataError
    from ml.data.tokenizers.identity import described
    from ml.training.run_tokenizer import read_run_tokenizer

    kept = read_run_tokenizer(run)
    if kept is not None and kept.identity != tokenizer.identity:
        raise DataError(f"the data has {described(tokenizer)}, and the run {run} was begun with {described(kept)}")


def require_tokenizer_of_teacher(trainer: Trainer, tokenizer: Tokenizer) -> None:
    """Requires that a teacher predicts the tokens of the data.

    Raises:
        DataError: It has another tokenizer; the message names both.
    """
    from ml.data.tokenizers.identity import require_fit

    if trainer.distillation is None:
        return
    teacher = trainer.distillation.teacher
    found = tokenizer_of_run(teacher)
    if found is None:
        logger.warning("the teacher %s has no tokenizer to compare with that of the data", teacher)
    else:
        require_fit(tokenizer, found, "the data", f"the teacher {teacher}")


def _tokenizer_of_weights(trainer: Trainer) -> Tokenizer | None:
    if trainer.initial_weights is None:
        return None
    found = trainer.initial_weights.tokenizer()
    if found is None and (run := trainer.initial_weights.run) is not None:
        found = tokenizer_of_run(run)
    return found
