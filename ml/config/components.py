"""Modules that configurations import, found and executed separately for each configuration.

Python has one module per name and one search path per process. Two configurations may each have a different
`my_layers`, so while one imports, the modules of the others are hidden, and `sys.path` is never changed.
"""

import hashlib
import importlib
import importlib.abc
import importlib.machinery
import sys
import sysconfig
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from ml.config import gin_internals
from ml.config.configurable import active, adopt
from ml.config.signatures import Configurable

_lock = threading.RLock()
_NEVER_OWN = {*sys.stdlib_module_names, "ml", "__main__"}
_INSTALLED = [Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "platstdlib", "purelib", "platlib")]


@dataclass(frozen=True, slots=True)
class Component:
    """The source of a module that a configuration needs and that is not installed.

    Attributes:
        file: The path below the search folder, such as `my_layers.py` or `package/__init__.py`.
        source: The bytes that were executed.
    """

    file: str
    source: bytes = field(repr=False)

    @property
    def sha256(self) -> str:
        """The SHA-256 of the source, in hexadecimal digits."""
        return hashlib.sha256(self.source).hexdigest()


@dataclass(slots=True)
class _Facts:
    """The source, the registered configurables and the imports of a module that was executed for a configuration."""

    component: Component
    registered: dict[str, Configurable] = field(default_factory=dict)
    needs: list[ModuleType] = field(default_factory=list)


class Importer:
    """Imports modules for one configuration, and records what they import and register.

    Attributes:
        modules: The modules that the configuration names.
    """

    def __init__(self):
        self.modules: list[ModuleType] = []
        self._loaded: list[tuple[str, list[Path], Path | None]] = []

    def __getstate__(self):
        return self._loaded

    def __setstate__(self, loaded):
        """Imports the same modules again, as in another process."""
        self.modules, self._loaded = [], []
        for arguments in loaded:
            self.load(*arguments)

    def load(self, name: str, folders: Iterable[Path], forbidden: Path | None = None) -> ModuleType:
        """Imports a module from the first folder that contains it, else from Python's path.

        Args:
            name: The full name of the module.
            folders: The folders that are searched first, for this module and for its imports.
            forbidden: A folder from which nothing is executed, except from those of `folders` inside it; None allows
                all folders.
        """
        folders = [folder.resolve() for folder in folders]
        with _lock, _importing(_Finder(folders, forbidden)) as finder:
            module = importlib.import_module(name)
            self.modules += [*finder.needs, module]
        self._loaded.append((name, folders, forbidden and forbidden.resolve()))
        return module

    def components(self) -> list[Component]:
        """Returns the sources of all modules that were imported, directly or indirectly, ordered by file."""
        found = {c.file: c for module in self._closure() if (c := _component(module)) is not None}
        return [found[file] for file in sorted(found)]

    def registered(self) -> dict[str, Configurable]:
        """Returns the configurables of all modules that were imported, directly or indirectly, by full name."""
        closure = self._closure()
        packages = {_top(module.__name__) for module in closure if not isinstance(_facts(module), _Facts)} - _NEVER_OWN
        found = {}
        for selector, entry in gin_internals.registry().items():
            if {_top(selector), _top(entry.wrapped.__module__ or "")} & packages:
                found[selector] = adopt(entry)
        for module in closure:
            if (facts := _facts(module)) is not None:
                found.update(facts.registered)
        return found

    def _closure(self) -> list[ModuleType]:
        found: dict[int, ModuleType] = {}
        waiting = list(self.modules)
        while waiting:
            module = waiting.pop()
            if id(module) not in found:
                found[id(module)] = module
                facts = _facts(module)
                if facts is not None or _component(module) is not None:
                    waiting += [*(facts.needs if facts else ()), *_mentioned(module)]
        return list(found.values())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds modules in the folders of a configuration before any other place."""

    def __init__(self, folders: list[Path], forbidden: Path | None):
        self.folders = [str(folder.resolve()) for folder in folders]
        self.forbidden = forbidden.resolve() if forbidden else None
        self.hidden: dict[str, ModuleType] = {}  # modules of other configurations
        self.needs: list[ModuleType] = []
        self._running: list[_Facts] = []

    def find_spec(self, fullname, path=None, target=None):
        """See `importlib.abc.MetaPathFinder`."""
        is_own = _top(fullname) not in _NEVER_OWN
        spec = self.find_beside(fullname) if path is None and is_own else None
        spec = spec or importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is None or spec.origin is None:
            return None
        if self._is_forbidden(Path(spec.origin)):
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        if not is_own or type(spec.loader) is not importlib.machinery.SourceFileLoader:
            return None
        if _is_own(spec.origin):
            spec.loader = _Loader(fullname, spec.origin, self)
        return spec

    def find_beside(self, name: str) -> importlib.machinery.ModuleSpec | None:
        """Returns the spec of a module or package with code in one of the folders, or None."""
        spec = importlib.machinery.PathFinder.find_spec(name, self.folders)
        return spec if spec is not None and spec.origin is not None else None

    def _is_forbidden(self, origin: Path) -> bool:
        if self.forbidden is None or not origin.resolve().is_relative_to(self.forbidden):
            return False
        trusted = [folder for folder in map(Path, self.folders) if folder.is_relative_to(self.forbidden)]
        return not any(origin.resolve().is_relative_to(folder) for folder in trusted)

    def executed_before(self, name: str, component: Component, origin: str) -> ModuleType | None:
        """Returns the hidden module if it was executed from the same file with the same content, else None."""
        module = self.hidden.get(name)
        facts = None if module is None else _facts(module)
        if module is None or facts is None or facts.component != component or module.__file__ != origin:
            return None
        return module if all(map(self._is_current, facts.needs)) else None

    def _is_current(self, module: ModuleType) -> bool:
        """True if importing a needed module now gives the same module."""
        facts, name = _facts(module), module.__name__
        if facts is None:
            return True
        spec = None if "." in name else self.find_beside(name) or importlib.machinery.PathFinder.find_spec(name)
        is_there = "." in name or (spec is not None and spec.origin == module.__file__)
        file = Path(module.__file__) if is_there and module.__file__ else None
        unchanged = file is not None and file.is_file() and file.read_bytes() == facts.component.source
        return unchanged and all(self._is_current(other) for other in facts.needs if other is not module)

    def note(self, module: ModuleType) -> None:
        """Records that the module being executed, or else the configuration, needs this module."""
        (self._running[-1].needs if self._running else self.needs).append(module)

    @contextmanager
    def running(self, facts: _Facts) -> Iterator[None]:
        """Records what is registered and imported inside the context."""
        before = dict(gin_internals.registry().items())
        self._running.append(facts)
        try:
            yield
        finally:
            self._running.pop()
            for selector, entry in gin_internals.registry().items():
                if before.get(selector) is not entry:
                    facts.registered[selector] = adopt(entry)


class _Loader(importlib.machinery.SourceFileLoader):
    """Executes the source that it read, so that the hashed and copied source is the executed one."""

    def __init__(self, name: str, path: str, finder: _Finder):
        super().__init__(name, path)
        self._finder = finder

    def create_module(self, spec):
        """See `importlib.abc.Loader`."""
        file = _file_of(spec.name, spec.submodule_search_locations is not None)
        self._component = Component(file, Path(self.path).read_bytes())
        return self._finder.executed_before(spec.name, self._component, self.path)

    def exec_module(self, module):
        """See `importlib.abc.Loader`."""
        finder = self._finder
        finder.note(module)
        if _facts(module) is None:
            facts = _Facts(self._component)
            with finder.running(facts):
                exec(compile(self._component.source, self.path, "exec", dont_inherit=True), module.__dict__)
            module.__juniper__ = facts


@contextmanager
def _importing(finder: _Finder) -> Iterator[_Finder]:
    """Installs the finder, and hides the modules of other configurations until the end."""
    finder.hidden = {name: module for name, module in sys.modules.items() if _facts(module) is not None}
    others = _modules_of_other_files(finder)
    for name in (*finder.hidden, *others):
        del sys.modules[name]
    sys.meta_path.insert(0, finder)
    was_importing, active.importing = active.importing, True
    try:
        with gin_internals.interactive_mode():  # a module of the same name registers the same names again
            yield finder
    finally:
        active.importing = was_importing
        sys.meta_path.remove(finder)
        for name, module in finder.hidden.items():
            sys.modules.setdefault(name, module)
        sys.modules.update(others)


def _modules_of_other_files(finder: _Finder) -> dict[str, ModuleType]:
    """Modules that Python imported from other files than those in the folders of the configuration."""
    names = set()
    for name, module in list(sys.modules.items()):
        origin = getattr(module, "__file__", None)
        if "." not in name and origin and _is_own(origin) and name not in _NEVER_OWN and _facts(module) is None:
            spec = finder.find_beside(name)
            if spec is not None and spec.origin and Path(spec.origin).resolve() != Path(origin).resolve():
                names.add(name)
    return {name: module for name, module in sys.modules.items() if _top(name) in names}


def _facts(module: ModuleType) -> _Facts | None:
    return vars(module).get("__juniper__") if isinstance(module, ModuleType) else None


def _component(module: ModuleType) -> Component | None:
    """The source of a module that is not installed; None for an installed one."""
    if (facts := _facts(module)) is not None:
        return facts.component
    origin = getattr(module, "__file__", None)
    if origin is None or not _is_own(origin) or _top(module.__name__) in _NEVER_OWN:
        return None
    return Component(_file_of(module.__name__, hasattr(module, "__path__")), Path(origin).read_bytes())


def _mentioned(module: ModuleType) -> list[ModuleType]:
    """The modules in which the objects in a module are defined."""
    names = {
        value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        for value in list(vars(module).values())
    }
    known = [sys.modules[name] for name in names if isinstance(name, str) and name in sys.modules]
    return [other for other in known if _top(other.__name__) not in _NEVER_OWN]


def _is_own(origin: str) -> bool:
    path = Path(origin).resolve()
    return path.suffix == ".py" and not any(path.is_relative_to(folder) for folder in _INSTALLED)


def _file_of(name: str, is_package: bool) -> str:
    return name.replace(".", "/") + ("/__init__.py" if is_package else ".py")


def _top(name: str) -> str:
    return name.partition(".")[0]
