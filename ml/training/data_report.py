"""Report of the opened data of a run: its documents, its epochs, and the share of each part."""

from ml.data import Dataset
from ml.data.datasets.statistics import DocumentStatistics, Portion
from ml.terminal import table
from ml.training.trainer import Trainer

_HEADER = ("data", "share", "epochs", "documents", "tokens", "shortest", "median", "mean", "longest", "cut", "learned")
_UNKNOWN = "-"


def describe_data(trainer: Trainer, dataset: Dataset) -> str:
    """Formats a table of the parts of the training data, and the number of epochs of the run.

    The share is that of the sequences of the run; lengths are in tokens; cut documents are in no sequence whole.

    Args:
        trainer: The settings of the run.
        dataset: The open training data.
    """
    num_steps = trainer.length.with_epoch(dataset.num_sequences, trainer.batch_size).num_steps
    num_sequences = num_steps * trainer.batch_size
    statistics = dataset.statistics()
    rows = [
        (name or "all", *_of_portion(portion), *_of_documents(statistics.get(name)))
        for name, portion in dataset.portions(num_sequences).items()
    ]
    skipped = {name: one.num_skipped for name, one in statistics.items() if one.num_skipped}
    length = trainer.sequence_length
    return "\n".join(
        [
            *table([_HEADER, *rows], right=[name != "data" for name in _HEADER]),
            *(f"skipped {count:,} documents{f' of {name}' if name else ''}" for name, count in skipped.items()),
            "",
            f"an epoch          {dataset.num_sequences:,} sequences of {length:,} tokens",
            f"the run           {num_steps:,} steps of {trainer.batch_size:,} sequences: "
            f"{num_sequences:,} sequences, {num_sequences / dataset.num_sequences:.2f} epochs",
            f"held out          {dataset.num_validation_tokens:,} tokens",
        ]
    )


def _of_portion(portion: Portion) -> tuple[str, str]:
    return f"{portion.share:.1%}", f"{portion.epochs:.2f}"


def _of_documents(one: DocumentStatistics | None) -> tuple[str, ...]:
    if one is None:
        return (_UNKNOWN,) * (len(_HEADER) - 3)
    counts = (f"{one.num_documents:,}", f"{one.num_tokens:,}")
    lengths = (f"{one.shortest:,}", f"{one.median:,.0f}", f"{one.mean:,.0f}", f"{one.longest:,}")
    cut = _UNKNOWN if one.num_cut is None else _part(one.num_cut, one.num_documents)
    learned = "100.0%" if one.num_learned is None else _part(one.num_learned, one.num_tokens)
    return (*counts, *lengths, cut, learned)


def _part(count: int, total: int) -> str:
    return f"{count / max(total, 1):.1%}"
