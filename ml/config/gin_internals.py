"""All private names of gin-config 0.5.0 that Juniper uses, with a self-test that they behave as expected."""

from importlib import metadata

import gin
from gin import config as _config
from gin import config_parser

PINNED_VERSION = "0.5.0"

ParserDelegate = config_parser.ParserDelegate


class ConfigParser(config_parser.ConfigParser):
    """Gin's parser, extended to record repeated keys in dicts.

    Attributes:
        repeated: The line and the key of each repeated entry read so far.
    """

    def __init__(self, *args, **kwargs):
        self._keys: list[set] = []  # of the containers being read, innermost last
        self.repeated: list[tuple[int, object]] = []
        super().__init__(*args, **kwargs)

    def _maybe_parse_container(self):
        self._keys.append(set())
        try:
            return super()._maybe_parse_container()
        finally:
            self._keys.pop()

    def _parse_dict_item(self):
        place, seen = self._current_location(), self._keys[-1]
        key, value = super()._parse_dict_item()
        try:
            is_new = key not in seen
        except TypeError:
            self._raise_syntax_error(f"{key!r} cannot be a key", place)
        if not is_new:
            self.repeated.append((place.line_num, key))
        seen.add(key)
        return key, value


def registry():
    """Returns all registered configurables by full selector (a `SelectorMap` of `gin.config.Configurable`)."""
    return _config._REGISTRY


def registered(selector: str):
    """Returns the registry's entry of a full selector, or None."""
    return _config._REGISTRY.get(selector)


def selectors() -> list[str]:
    """Returns the full names of all registered configurables."""
    return [selector for selector, _ in _config._REGISTRY.items()]


def constant_names() -> list[str]:
    """Returns the full names of all constants."""
    return [name for name, _ in _config._CONSTANTS.items()]


def entry_of(target):
    """Returns the registry's entry of a class or function that was just registered."""
    return _config._INVERSE_REGISTRY[target]


def constants():
    """Returns all gin constants by full name (a `SelectorMap`)."""
    return _config._CONSTANTS


def current_scope() -> list[str]:
    """Returns the active scope of this thread, outermost first. The list belongs to gin and must not be changed."""
    return _config._SCOPE_MANAGER._active_scopes[-1]


def scope_stack() -> list[list[str]]:
    """Returns the stack of active scopes of this thread, innermost last, to push to and pop from."""
    ensure_scope_stack()
    return _config._SCOPE_MANAGER._active_scopes


def enter_scope(scope: list[str]) -> None:
    """Makes `scope` the active scope until `exit_scope`."""
    _config._SCOPE_MANAGER.enter_scope(scope)


interactive_mode = _config.interactive_mode  # a name may be registered again
exit_scope = _config._SCOPE_MANAGER.exit_scope


def ensure_scope_stack() -> None:
    """Creates the scope stack of a thread that has not used gin yet."""
    _config._SCOPE_MANAGER._maybe_init()


def _self_test() -> None:
    installed = metadata.version("gin-config")
    try:
        ensure_scope_stack()
        with gin.config_scope("a"), gin.config_scope("b"):
            assert current_scope() == ["a", "b"]
            enter_scope(["c"])
            assert gin.current_scope() == ["c"]
            exit_scope()
            assert gin.current_scope() == ["a", "b"]
        assert registry().matching_selectors("gin.macro") == ["gin.macro"]
        assert "gin.REQUIRED" in constants()
        statement = next(ConfigParser("a/B.c = [1, 'x']", None))
        assert (statement.scope, statement.selector, statement.arg_name, statement.value) == ("a", "B", "c", [1, "x"])
        assert statement.location.line_num == 1
    except (AttributeError, AssertionError, TypeError) as error:
        raise ImportError(
            f"Juniper needs gin-config {PINNED_VERSION}, but {installed} is installed, which differs in a private "
            f"function that Juniper uses ({error!r}). Run: pip install gin-config=={PINNED_VERSION}"
        ) from error


_self_test()
