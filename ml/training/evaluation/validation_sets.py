"""Named validation sets of a run."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from ml.config import child, require
from ml.data import Data, DataError, Dataset
from ml.data.tokenizers.identity import require_fit
from ml.training.evaluation.validation import PreferenceResult, Validation, ValidationResult

Constructors = Callable[..., Validation] | dict[str, Callable[..., Validation]] | None


def build_validations(constructors: Constructors) -> dict[str, Validation]:
    """Builds each set of `Trainer.validation` in the scope of its name; an unnamed set has the name ""."""
    if constructors is None:
        return {}
    if not isinstance(constructors, Mapping):
        return {"": child("validation", constructors)}
    wrong = [name for name in constructors if not name.isidentifier()]
    require(not wrong, "validation", f"must have names that are identifiers, not {', '.join(wrong)}")
    return child("validation", _build_named, constructors)


def _build_named(constructors: Mapping[str, Callable[..., Validation]]) -> dict[str, Validation]:
    return {name: child(name, one, defaults={"num_tokens": None}) for name, one in constructors.items()}


def metrics_of(name: str, has_pairs: bool = False) -> list[str]:
    """Returns the names of the metrics of a validation set, in the order of its result.

    Args:
        name: Name of the set; "" for an unnamed one.
        has_pairs: True for pairs of answers, whose result is a `PreferenceResult`.
    """
    prefix = f"validation_{name}" if name else "validation"
    fields = PreferenceResult._fields if has_pairs else ValidationResult._fields
    return [f"{prefix}_{field}" for field in fields]


class ValidationSet(NamedTuple):
    """A validation set with open data."""

    name: str
    validation: Validation
    dataset: Dataset

    def record(self, result: ValidationResult | PreferenceResult) -> dict[str, float]:
        """Returns the metrics of the set for `metrics.jsonl`."""
        return dict(zip(metrics_of(self.name, isinstance(result, PreferenceResult)), result, strict=True))


def open_sets(
    validations: Mapping[str, Validation], training: Dataset, open_data: Callable[[Data], Dataset]
) -> list[ValidationSet]:
    """Opens the data of each validation set.

    Args:
        validations: The settings of each set, by name.
        training: The training dataset, whose held-out split is measured by sets without separate data.
        open_data: Opens separate data.

    Raises:
        DataError: The data of a set cannot be used, has no token to predict or another tokenizer.
    """
    sets = []
    for name, validation in validations.items():
        dataset = training if validation.own_data is None else open_data(validation.own_data)
        if dataset.num_validation_tokens < 1 and validation.own_data is None:
            raise DataError(
                "no text is held out to validate on: raise the validation_fraction of Trainer.data, "
                "or set Trainer.validation = None"
            )
        if dataset.num_validation_tokens < 1:
            raise DataError(f"the data of the validation set {name or 'of the run'} has nothing to predict")
        require_fit(training.tokenizer, dataset.tokenizer, "the training data", f"the validation set {name}".rstrip())
        sets.append(ValidationSet(name, validation, dataset))
    return sets
