"""Errors of the code of parts, in the words of a configuration."""

import inspect
import traceback
from pathlib import Path
from typing import Any, NamedTuple


class MissingAttribute(NamedTuple):
    """An attribute that an object was expected to have.

    Attributes:
        owner: The object.
        name: The attribute.
        wanted_by: The object whose code asks for it; None where that is unknown.
    """

    owner: Any
    name: str
    wanted_by: Any


def missing_attribute(error: Exception) -> MissingAttribute | None:
    """The attribute that an error is about; None for another error.

    A class with its own `__getattr__`, such as `nn.Module`, reports an `AttributeError` inside one of its properties as
    a missing property. Such a property is evaluated again to find the attribute that is really missing.
    """
    if not isinstance(error, AttributeError) or error.name is None or error.obj is None:
        return None
    hidden = inspect.getattr_static(type(error.obj), error.name, None)
    if isinstance(hidden, property) and hidden.fget is not None:
        try:
            hidden.fget(error.obj)
        except AttributeError as cause:
            return missing_attribute(cause)
        except Exception:  # the error that was reported stands
            return None
    return MissingAttribute(error.obj, error.name, _running(error))


def _running(error: Exception) -> Any:
    """The object whose method asked for the attribute that an error is about."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code.co_name != "__getattr__"]
    owners = [frame.f_locals["self"] for frame in frames if "self" in frame.f_locals]
    return owners[-1] if owners else None


def describe_error(error: Exception) -> str:
    """The kind of an error, the first line of its message, and the line of code that raised it."""
    message = str(error).strip().partition("\n")[0]
    kind = type(error).__name__
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name != "__getattr__"]
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{kind}: {message}{place}" if message else f"{kind}{place}"
