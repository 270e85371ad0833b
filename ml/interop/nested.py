"""Rows of models whose config.json has that of a language model and that of a vision tower inside."""

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import nn

from ml.config import ConfigError, ImportedValue
from ml.interop.building import model_of
from ml.interop.comparison import describe, equal
from ml.interop.errors import InteropError
from ml.interop.family import KEPT, Family, require_known
from ml.interop.fields import ConfigFields, Row, View, key_of
from ml.interop.tensors import TensorRow
from ml.models import LanguageModel, VisionLanguageModel

_PLACE = "config.json#"


class Nested(Row, abc.ABC):
    """The fields of an object within a config.json.

    Attributes:
        field: The field that holds the object.
    """

    field: str

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.field,)

    def imported(self, fields: ConfigFields) -> Iterator[ImportedValue]:
        content = fields.get(self.field, None)
        if not isinstance(content, dict):
            raise InteropError(f"config.json#{self.field} must be an object, not {content!r}")
        inner = ConfigFields(content)
        try:
            values = self.inside(inner)
        except InteropError as error:
            raise InteropError(str(error).replace(_PLACE, f"{_PLACE}{self.field}.")) from None
        fields.idle |= {f"{self.field}.{name}" for name in inner.idle}
        for value in values:
            yield ImportedValue(value.key, value.value, value.source.replace(_PLACE, f"{_PLACE}{self.field}."))

    @abc.abstractmethod
    def inside(self, inner: ConfigFields) -> list[ImportedValue]:
        """Returns the bindings of the object, and adds the fields without a meaning for the model to the idle ones.

        Raises:
            InteropError: A field is unknown, or has a value that cannot be expressed.
        """


class Language(NamedTuple):
    """A family of language models inside, and the values of absent fields that it requires elsewhere."""

    family: Family
    sizes: Mapping[str, Any]


@dataclass(frozen=True)
class Text(Nested):
    """The config.json of a language model.

    Args:
        languages: The families that are known there, by `model_type`.
        field: The field that holds it.
    """

    languages: Mapping[str, Language]
    field: str = "text_config"

    def inside(self, inner: ConfigFields) -> list[ImportedValue]:
        family, sizes = self.language(inner.content)
        inner.content = {**sizes, **inner.content}
        values = [value for row in family.rows for value in row.imported(inner)]
        if any(value.key == key_of(LanguageModel, "tie_word_embeddings") and value.value for value in values):
            raise InteropError(f"{_PLACE}tie_word_embeddings is true, and only false can be expressed")
        require_known(family, inner)
        inner.idle |= family.all_kept
        return values

    def language(self, config: Mapping[str, Any]) -> Language:
        """Returns the family of the language model.

        Raises:
            InteropError: It is none of those that are known there.
        """
        kind = config.get("model_type", "llama")
        if kind not in self.languages:
            raise InteropError(f"{_PLACE}model_type is {kind!r}, and there is only {', '.join(self.languages)}")
        return self.languages[kind]

    def exported(self, view: View) -> dict[str, Any]:
        model = language_model_of(view.model)
        for kind, (family, _) in self.languages.items():
            config = {"model_type": kind, "architectures": [family.architectures[kind]]}
            try:
                for row in family.rows:
                    config |= row.exported(View(model))
                theirs = model_of([value for row in family.rows for value in row.imported(ConfigFields(config))])
            except (InteropError, ConfigError):
                continue
            if equal(describe(model, of_training=False), describe(theirs, of_training=False)):
                return {self.field: config}
        raise InteropError(f"the language model is none of the families {', '.join(self.languages)}")

    def tensors(self, config: Mapping[str, Any], prefix: str) -> tuple[TensorRow, ...]:
        """Returns the tensors, whose names in the checkpoint have a prefix."""
        inside = config.get(self.field) or {}
        return tuple(
            replace(row, stored=prefix + row.stored) for row in self.language(inside).family.tensors_of(inside)
        )


def language_model_of(model: LanguageModel) -> LanguageModel:
    """Returns a language model that consists of the parts of one that reads images, without its vision encoder."""
    if not isinstance(model, VisionLanguageModel):
        raise InteropError("the model has no vision encoder")
    found = LanguageModel.__new__(LanguageModel)
    nn.Module.__init__(found)
    found.__dict__ |= {name: value for name, value in vars(model).items() if name not in ("image_token_id", "_modules")}
    found._modules = {name: module for name, module in model._modules.items() if name != "vision"}
    return found


@dataclass(frozen=True)
class Tower(Nested):
    """The config.json of a vision tower.

    Args:
        kind: Its `model_type`.
        rows: A function from the scope to the rows.
        kept: Fields without a place in the model, besides those of all families.
        field: The field that holds it.
    """

    kind: str
    rows: Callable[[str], Sequence[Row]]
    kept: frozenset[str] = frozenset()
    field: str = "vision_config"

    def inside(self, inner: ConfigFields) -> list[ImportedValue]:
        if inner.get("model_type", None) != self.kind:
            raise InteropError(f"config.json#model_type is {inner.content.get('model_type')!r}, not {self.kind!r}")
        values = [value for row in self.rows("vision") for value in row.imported(inner)]
        known = inner.read | KEPT | self.kept
        if unknown := sorted(name for name, value in inner.content.items() if name not in known and value is not None):
            raise InteropError(f"config.json#{unknown[0]} is unknown in a vision tower of {self.kind}")
        inner.idle |= KEPT | self.kept
        return values

    def exported(self, view: View) -> dict[str, Any]:
        if not isinstance(view.model, VisionLanguageModel):
            raise InteropError("the model has no vision encoder")
        tower = view.only(view.model.vision)
        found = {name: value for row in self.rows("") for name, value in row.exported(tower).items()}
        return {self.field: {"model_type": self.kind, **found}}
