"""Mixers that consist of other mixers, each with a name."""

from collections.abc import Callable, Mapping

from torch import nn

from ml.config import child, require
from ml.layers.protocol import Mixer


class NamedMixers(Mixer):
    """Base of mixers that consist of others, whose names are attributes and scopes.

    Attributes:
        names: Names of the mixers.
    """

    decodes = True
    separates_documents = True

    names: list[str]

    def _name_mixers(self, mixers: Mapping[str, Callable[..., nn.Module]]) -> None:
        """Sets and checks the names of the mixers."""
        require(len(mixers) > 0, "mixers", "must name one mixer or more")
        self.names = list(mixers)
        wrong = [name for name in mixers if not name.isidentifier() or hasattr(self, name)]
        require(not wrong, "mixers", f"must have names that can be attributes, not {', '.join(wrong)}")

    def _build_mixers(self, hidden_size: int, mixers: Mapping[str, Callable[..., nn.Module]]) -> None:
        """Builds the mixers; the whole is causal, or not, if all of them are."""
        for name, mixer in mixers.items():
            setattr(self, name, child(name, mixer, hidden_size))
        causal = {mixer.causal if isinstance(mixer, Mixer) else None for mixer in self.children()}
        self.causal = causal.pop() if len(causal) == 1 else None

    def mixing_children(self) -> Mapping[str, nn.Module]:
        """All mixers: what one of them does not declare, none of them does."""
        return dict(self.named_children())

    def training_flops_per_token(self, sequence_length: int) -> float:
        """Zero: products are those of the children."""
        return 0.0
