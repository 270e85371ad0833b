"""The configurables of Juniper as its source declares them, read without importing it, and so without torch.

Modules are parsed, names are followed through imports and aliases. What cannot be told from the source for certain
raises `UnclearError`; then the registry has to be asked.
"""

import ast
import builtins
import functools
import inspect
import math
import operator
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ml.cli.catalogue import CONSTRUCTOR, DECIDED, REQUIRED, Entry, Parameter
from ml.config.values import to_text

_ROOT = Path(__file__).parents[1]
_PACKAGE = _ROOT.name
_ARITHMETIC = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
}


class UnclearError(Exception):
    """The source alone does not tell."""


class Found(NamedTuple):
    """Definition of a name: a node in a module of Juniper, or a name outside of it."""

    module: str
    node: ast.AST | None
    name: str = ""


def entries() -> list[Entry]:
    """Every configurable of Juniper.

    Raises:
        UnclearError: One of them cannot be told from the source.
    """
    return [_entry(module, node) for module in _modules() for node in _configurables(module)]


def _modules() -> Iterator[str]:
    for path in sorted(_ROOT.rglob("*.py")):
        if "configurable" in path.read_text(encoding="utf-8"):
            parts = path.relative_to(_ROOT.parent).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def _names(module: str) -> dict[str, ast.AST]:
    """The definitions, assignments and imports at the top of a module, by name."""
    path = _ROOT.parent.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    names: dict[str, ast.AST] = {}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names[node.name] = node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name: node for alias in node.names}
        elif isinstance(node, ast.Assign):
            names |= {target.id: node.value for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            names[node.target.id] = node.value
    return names


def _configurables(module: str) -> Iterator[ast.ClassDef | ast.FunctionDef]:
    for node in _names(module).values():
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and _is_configurable(node):
            yield node


def _is_configurable(node: ast.AST) -> bool:
    decorators = getattr(node, "decorator_list", ())
    calls = [d for d in decorators if isinstance(d, ast.Call) and ast.unparse(d.func) == "configurable"]
    if any(call.args or any(keyword.arg != "neutral" for keyword in call.keywords) for call in calls):
        raise UnclearError("a decorator with options")
    return bool(calls) or any(isinstance(d, ast.Name) and d.id == "configurable" for d in decorators)


def _find(module: str, node: ast.AST) -> Found:
    """Resolves a name, or an attribute of one, to its definition."""
    if isinstance(node, ast.Attribute):
        owner = _find(module, node.value)
        if owner.node is not None:
            raise UnclearError(ast.unparse(node))
        return Found(module, None, f"{owner.name}.{node.attr}")
    if not isinstance(node, ast.Name):
        raise UnclearError(ast.unparse(node))
    found = _names(module).get(node.id)
    if found is None and hasattr(builtins, node.id):
        return Found(module, None, node.id)
    if found is None:
        raise UnclearError(node.id)
    if isinstance(found, ast.Import):
        return Found(module, None, next(a.name for a in found.names if (a.asname or a.name) == node.id))
    if isinstance(found, ast.ImportFrom):
        name = next(alias.name for alias in found.names if (alias.asname or alias.name) == node.id)
        assert found.module is not None  # imports are absolute
        if found.module.split(".")[0] != _PACKAGE:
            return Found(module, None, f"{found.module}.{name}")
        return _find(found.module, ast.Name(name))
    return _find(module, found) if isinstance(found, ast.Name | ast.Attribute) else Found(module, found, node.id)


def _entry(module: str, node: ast.ClassDef | ast.FunctionDef) -> Entry:
    parameters = _of_function(module, node) if isinstance(node, ast.FunctionDef) else _of_class(module, node)
    return Entry(node.name, f"{module}.{node.name}", inspect.cleandoc(_doc(module, node)), tuple(parameters))


def _doc(module: str, node: ast.ClassDef | ast.FunctionDef) -> str:
    doc = ast.get_docstring(node, clean=False)
    for base in getattr(node, "bases", ()) if doc is None else ():
        found = _find(module, base)
        if isinstance(found.node, ast.ClassDef) and (doc := _doc(found.module, found.node)):
            break
    return doc or ""


def _of_class(module: str, node: ast.ClassDef) -> list[Parameter]:
    init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if init is not None:
        return _of_function(module, init, skip=1)
    if node.decorator_list and not _is_configurable(node):
        raise UnclearError(f"the constructor of {node.name}")
    for base in node.bases:
        found = _find(module, base)
        if isinstance(found.node, ast.ClassDef):
            return _of_class(found.module, found.node)
        if found.name not in ("abc.ABC", "typing.Protocol"):
            raise UnclearError(f"the constructor of {found.name}")
    return []


def _of_function(module: str, node: ast.FunctionDef, skip: int = 0) -> list[Parameter]:
    arguments = node.args
    if arguments.posonlyargs:
        raise UnclearError(f"the parameters of {node.name}")
    plain = arguments.args
    defaults = [*[None] * (len(plain) - len(arguments.defaults)), *arguments.defaults]
    pairs = [
        *list(zip(plain, defaults, strict=True))[skip:],
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    return [Parameter(a.arg, _spell(module, a.annotation), _default(module, default)) for a, default in pairs]


def _spell(module: str, node: ast.AST | None) -> str:
    """An annotation, as `ml.config.types.spell` writes it."""
    if node is None:
        return "anything"
    if isinstance(node, ast.Constant):
        return (
            _spell(module, ast.parse(node.value, mode="eval").body) if isinstance(node.value, str) else repr(node.value)
        )
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return " | ".join(dict.fromkeys(_spell(module, part) for part in (node.left, node.right)))
    if isinstance(node, ast.Subscript):
        return _spell_generic(module, node)
    found = _find(module, node)
    if found.node is None:
        return CONSTRUCTOR if found.name == "collections.abc.Callable" else found.name.rpartition(".")[2]
    return found.name if isinstance(found.node, ast.ClassDef) else _spell(found.module, found.node)


def _spell_generic(module: str, node: ast.Subscript) -> str:
    name = _find(module, node.value).name.rpartition(".")[2]
    arguments = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if name == "Literal":
        return " | ".join(repr(ast.literal_eval(argument)) for argument in arguments)
    if name == "Callable":
        made = _made(module, arguments[-1])
        return f"{CONSTRUCTOR} to a constructor of {made}" if made else CONSTRUCTOR
    if name == "Annotated":
        return _spell(module, arguments[0])
    if name in ("Union", "Optional"):
        raise UnclearError(ast.unparse(node))
    inside = ["..." if ast.unparse(argument) == "..." else _spell(module, argument) for argument in arguments]
    return f"{name}[{', '.join(inside)}]"


def _made(module: str, node: ast.AST) -> str | None:
    """The type that a constructor makes, where it is one."""
    if isinstance(node, ast.Constant) and node.value is None:
        return "NoneType"
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _made(module, ast.parse(node.value, mode="eval").body)
    if isinstance(node, ast.Subscript | ast.BinOp):
        return None
    found = _find(module, node)
    if found.node is None:
        name = found.name.rpartition(".")[2]
        return None if name in ("Any", "object", "Callable") else name
    return found.name if isinstance(found.node, ast.ClassDef) else _made(found.module, found.node)


def _default(module: str, node: ast.AST | None) -> str:
    if node is None:
        return DECIDED
    if isinstance(node, ast.Name | ast.Attribute):
        found = _find(module, node)
        if found.name == "gin.REQUIRED":
            return REQUIRED
    return _text(module, node)


def _text(module: str, node: ast.AST) -> str:
    """A value as gin text, as `ml.config.values.to_text` writes it."""
    if isinstance(node, ast.Tuple | ast.List | ast.Dict):
        return _text_of_container(module, node)
    if isinstance(node, ast.Name | ast.Attribute):
        found = _find(module, node)
        if found.node is None:
            return _text_of_constant(found.name)
        if isinstance(found.node, ast.ClassDef | ast.FunctionDef):
            if not _is_configurable(found.node):
                raise UnclearError(ast.unparse(node))
            return f"@{found.node.name}"
        return _text(found.module, found.node)
    return to_text(_number(module, node), lambda _: None)


def _text_of_container(module: str, node: ast.Tuple | ast.List | ast.Dict) -> str:
    if isinstance(node, ast.Dict):
        if None in node.keys:
            raise UnclearError(ast.unparse(node))  # `**other`
        pairs = [(key, value) for key, value in zip(node.keys, node.values, strict=True) if key is not None]
        return "{" + ", ".join(f"{_text(module, key)}: {_text(module, value)}" for key, value in pairs) + "}"
    items = [_text(module, item) for item in node.elts]
    if isinstance(node, ast.List):
        return f"[{', '.join(items)}]"
    return "(" + ", ".join(items) + ("," if len(items) == 1 else "") + ")"


def _text_of_constant(name: str) -> str:
    owner, _, attribute = name.rpartition(".")
    if owner == "math":
        return to_text(getattr(math, attribute), lambda _: None)
    if owner == "torch":
        return f"%{name}"
    raise UnclearError(name)


def _number(module: str, node: ast.AST) -> Any:
    """A literal, or what arithmetic and functions of `math` make of literals."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        pass
    if isinstance(node, ast.Call) and not node.keywords and (name := _find(module, node.func).name).startswith("math."):
        return getattr(math, name.removeprefix("math."))(*(_number(module, argument) for argument in node.args))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_number(module, node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        return _ARITHMETIC[type(node.op)](_number(module, node.left), _number(module, node.right))
    if isinstance(node, ast.Attribute) and (name := _find(module, node).name).startswith("math."):
        return getattr(math, name.removeprefix("math."))
    raise UnclearError(ast.unparse(node))
