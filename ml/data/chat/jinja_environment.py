"""Jinja as chat templates use it: in a sandbox, with the settings and functions that transformers documents."""

import datetime
import functools
import json
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

from ml.data.errors import DataError
from ml.optional import optional_import

BEGIN, END = "\ufdd0", "\ufdd1"
"""Noncharacters around the text of a `{% generation %}` block in what a template renders."""

_OLDEST = (3, 1, 6)  # escapes from the sandbox are known of older versions


class CompiledTemplate(NamedTuple):
    """Chat template, compiled.

    Attributes:
        render: Renders it with variables; `BEGIN` and `END` surround the text of generation blocks.
        marks_answers: True if it has generation blocks.
        names: Names of variables, attributes and keys that it uses, and its other texts.
        read_texts: Texts that it compares with or searches for.
    """

    render: Callable[..., str]
    marks_answers: bool
    names: frozenset[str]
    read_texts: frozenset[str]


@functools.lru_cache(maxsize=16)
def compiled(source: str, date: datetime.date | None) -> CompiledTemplate:
    """Compiles a chat template.

    Args:
        source: Text of the template.
        date: Date that `strftime_now` formats; None makes its use an error.

    Raises:
        DataError: It is not a Jinja template, or Jinja is not installed.
    """
    jinja2 = optional_import("jinja2", "chat", "JinjaTemplate", DataError)
    if tuple(int(number) for number in jinja2.__version__.split(".")[:3]) < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise DataError(f"JinjaTemplate needs jinja2 {oldest} or newer, not {jinja2.__version__}")
    environment = _environment(jinja2, date)
    try:
        tree = environment.parse(source)
        template = environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise DataError(f"line {error.lineno} of the chat template: {error.message}") from None
    names, read = _names(jinja2.nodes, tree)
    extension = _generation(jinja2).identifier
    marks = any(node.identifier == extension for node in tree.find_all(jinja2.nodes.ExtensionAttribute))
    return CompiledTemplate(template.render, marks, frozenset(names), frozenset(read))


def _environment(jinja2: ModuleType, date: datetime.date | None) -> Any:
    sandbox = optional_import("jinja2.sandbox", "chat", "JinjaTemplate", DataError)
    loops = optional_import("jinja2.ext", "chat", "JinjaTemplate", DataError).loopcontrols

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def strftime_now(pattern: str) -> str:
        if date is None:
            today = datetime.date.today().isoformat()
            raise jinja2.TemplateError(
                "the template writes today's date, and a run would depend on the day it is resumed or asked: set "
                f"JinjaTemplate.date = '{today}'"
            )
        return datetime.datetime.combine(date, datetime.time()).strftime(pattern)

    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_generation(jinja2), loops]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Returns JSON without the escapes for HTML of Jinja's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@functools.cache
def _generation(jinja2: ModuleType) -> Any:
    """Returns the extension for `{% generation %}` blocks."""
    extension: Any = optional_import("jinja2.ext", "chat", "JinjaTemplate", DataError).Extension

    class Generation(extension):
        """Surrounds what a block renders by `BEGIN` and `END`."""

        tags = frozenset({"generation"})

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("marked"), [], [], body).set_lineno(line)

        def marked(self, caller: Callable[[], str]) -> str:
            return f"{BEGIN}{caller()}{END}"

    return Generation


def _names(nodes: Any, tree: Any) -> tuple[set[str], set[str]]:
    """Returns the names and texts of a template, and the texts that it compares with or searches for."""
    names = {node.attr for node in tree.find_all(nodes.Getattr)}
    names |= {node.name for node in tree.find_all(nodes.Name)}
    names |= set(_texts(nodes, [tree]))
    read: set[str] = set()
    for node in tree.find_all((nodes.Call, nodes.Filter, nodes.Test)):
        read |= set(_texts(nodes, [*node.args, *(pair.value for pair in node.kwargs)]))
    for node in tree.find_all(nodes.Compare):
        read |= set(_texts(nodes, [node.expr, *node.ops]))
    return names, read


def _texts(nodes: Any, roots: list[Any]) -> list[str]:
    found = [node for root in roots for node in (root, *root.find_all(nodes.Const)) if isinstance(node, nodes.Const)]
    return [node.value for node in found if isinstance(node.value, str)]
