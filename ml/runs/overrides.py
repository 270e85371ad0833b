"""Values of an imported checkpoint that a configuration overrides."""

from ml.config import Config

_MOST = 12  # in a message


def overridden(config: Config, source: str = "") -> list[str]:
    """Returns a line for each imported value that a file or a flag overrides with another one.

    Args:
        config: The configuration.
        source: The start of the places of the values that count, such as "config.json#".
    """
    lines: dict[str, None] = {}
    for record in config.records():
        if not record.explicit:
            continue
        for origin in record.overrode:
            is_counted = origin.source == "imported" and origin.location.startswith(source)
            if is_counted and origin.value != record.value:
                name = f"{record.configurable}.{record.parameter}"
                place = f"{name} = {record.value} ({record.location})"
                lines[f"{place} overrides {origin.value} ({origin.location})"] = None
    return list(lines)


def with_advice(message: str, config: Config) -> str:
    """Returns the message of a checkpoint that does not fit, with the bindings that changed the model and what to do.

    Args:
        message: The message.
        config: The configuration.
    """
    changed = overridden(config)
    if not changed:
        return message
    more = [f"and {len(changed) - _MOST} more"] if len(changed) > _MOST else []
    return "\n".join(
        [
            message,
            "  set against the checkpoint:",
            *(f"    {line}" for line in [*changed[:_MOST], *more]),
            "  leave the model to the checkpoint (recipes/finetune.gin sets none of it), or name the weights that may "
            "differ by --init_may_differ",
        ]
    )
