"""Lines of an operative config: its head, the start of a layer, and what marks a value."""

from ml.config.values import LEFT_OUT

HEADER = "# The operative config of a run: every value that took effect. Later bindings override it.\n"
LAYER_LINE = "juniper.layer = "  # the layer of the lines below it
LEFT_OUT_SUFFIX = f" = %{LEFT_OUT.name}"
NEUTRAL_SUFFIX = "  # neutral"


def is_heading(line: str) -> bool:
    """Returns whether a line of an operative config is empty, a comment or the start of a layer."""
    return not line or line.startswith(("#", LAYER_LINE))
