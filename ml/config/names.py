"""Names of configurables within one configuration."""

from collections.abc import Mapping

from ml.config import gin_internals
from ml.config.configurable import adopt
from ml.config.signatures import Configurable
from ml.config.statements import as_scope

_BUILT_IN = ("ml.", "gin.")
_NOTHING: Mapping[str, Configurable] = {}


class Names:
    """The configurables that a configuration can name: those of Juniper, of its imports, and of the program.

    Those of the program that loads the configuration, such as a notebook, are found only if no other has the name.
    Those that only other configurations imported are not found.

    Args:
        imported: The configurables that the configuration imports, by full name.
    """

    def __init__(self, imported: Mapping[str, Configurable] = _NOTHING):
        self._imported = imported
        self._spelled: dict[Configurable, str] = {}

    def find(self, name: str, built_in: bool = False) -> list[Configurable]:
        """Returns all configurables that a name, with or without a module, can refer to; gin's own only by full name.

        Args:
            name: The name in a statement.
            built_in: Whether the statement comes with Juniper, so that the name refers to Juniper's own configurable.
        """
        registry = gin_internals.registry()
        selectors = registry.matching_selectors(name)
        ours = [adopt(registry[selector]) for selector in selectors if selector.startswith(_BUILT_IN)]
        own = [info for selector, info in self._imported.items() if f".{selector}".endswith(f".{name}")]
        found = ours if ours and built_in else [*ours, *(info for info in own if info not in ours)]
        exact = [info for info in found if info.selector == name]
        if not found:
            found = [adopt(registry[selector]) for selector in selectors]
            found = [info for info in found if not info.imported]
        elif len(found) > 1:
            found = exact or [info for info in found if not info.selector.startswith("gin.")]
        return found

    def spell(self, info: Configurable) -> str:
        """Returns the shortest name that refers to a configurable and to no other."""
        if info not in self._spelled:
            parts = info.selector.split(".")
            names = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
            self._spelled[info] = next((name for name in names if self.find(name) == [info]), info.selector)
        return self._spelled[info]

    def of_scope(self, component: str) -> str:
        """Returns the name that a scope component represents; a scope component contains no dots."""
        short = component.rpartition("__")[2]
        selectors = [*gin_internals.registry().matching_selectors(short), *self._imported]
        spelled = [s for s in selectors if f"__{as_scope(s)}".endswith(f"__{component}")]
        return component if short == component or not spelled else spelled[0]

    def not_imported(self, name: str) -> str:
        """Returns a hint if only a module that another configuration imported has the name, else an empty string."""
        modules = {s.rpartition(".")[0] for s in gin_internals.registry().matching_selectors(name)}
        return f"; add `import {min(modules)}` to use the one in that module" if modules else ""

    def known(self) -> list[str]:
        """Returns the short names of all of them, without gin's own."""
        registry = gin_internals.registry()
        entries = [(s, registry[s]) for s in gin_internals.selectors() if not s.startswith("gin.")]
        visible = [s for s, e in entries if s.startswith(_BUILT_IN) or not adopt(e).imported]
        return sorted({s.rpartition(".")[2] for s in (*visible, *self._imported)})
