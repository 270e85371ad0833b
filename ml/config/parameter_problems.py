"""Problems with parameters, located at the bindings that set them."""

from ml.config.errors import Problem
from ml.config.plans import Call, Cause
from ml.config.scopes import compress
from ml.config.statements import UNSET, Binding


def cause_of(calling: list[Call], parameter: str) -> Cause:
    """The value of a parameter of the innermost call that has it and whose parent does not pass it."""
    for call in reversed(calling):
        if parameter in call.info.parameters and parameter not in call.arguments:
            candidates = call.plan.candidates.get(parameter)
            suggested = call.suggestions.value(parameter)
            default = call.info.parameters[parameter].default if suggested is UNSET else suggested
            return Cause(f"{call.info.name}.{parameter}", candidates[-1].binding if candidates else None, default)
    return Cause(parameter, None, UNSET)


def missing_problem(call: Call, parameter: str, binding: Binding | None) -> Problem:
    """Returns the problem of a required parameter without a value; `binding` requires or omits it."""
    name = f"{call.info.name}.{parameter}"
    if binding is not None and binding.is_left_out:
        message = f"{name} must be set: the saved run left out its value, which had no effect there"
        return Problem(binding.location, message, binding.text())
    return Problem(binding.location if binding else None, f"{name} must be set, and nothing sets it")


def misfit_problem(call: Call, parameter: str, message: str) -> Problem:
    """Returns the problem of a parameter with an invalid value."""
    candidates = call.plan.candidates.get(parameter)
    name = f"{call.info.name}.{parameter}"
    if parameter in call.arguments:
        return Problem(None, f"{name}, which the parent determines, {message}")
    if candidates:
        binding = candidates[-1].binding
        return Problem(binding.location, f"{name} {message}", binding.text(written=True))
    whose = "the parent's" if parameter in {**call.suggestions.defaults, **call.suggestions.derived} else "its"
    return Problem(None, f"{name}, {whose} default, {message}")


def at(*paths: tuple[str, ...]) -> str:
    """Returns the paths as text that follows a message; empty without paths."""
    places = compress([path for path in paths if path])
    return f" (at {', '.join(places)})" if places else ""
