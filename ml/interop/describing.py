"""Hugging Face folders described for people."""

from pathlib import Path

from ml.config.configurable import reference_to
from ml.config.values import short_name, to_text
from ml.interop.building import model_of
from ml.interop.families import family_of
from ml.interop.folder import CONFIG, GENERATION_CONFIG, TOKENIZER_FILES, Folder
from ml.interop.importing import imported_values
from ml.interop.placement import placement
from ml.training.state import named_weights


def gin_text(folder: Path) -> str:
    """Returns the model of a folder as a gin file; each line names its field.

    Raises:
        InteropError: The folder cannot be imported.
    """
    opened = Folder(folder)
    lines = [f"# The model of {folder}: {family_of(opened.config).name}.", ""]
    for value in imported_values(opened):
        scope, _, key = value.key.rpartition("/")
        name, _, parameter = key.rpartition(".")
        key = "/".join(filter(None, (scope, f"{name.rpartition('.')[2]}.{parameter}")))
        text = f"{key} = {to_text(value.value, reference_to, short_name)}"
        lines.append(f"{text:<60}  # {value.source}")
    return "\n".join(lines) + "\n"


def describe_folder(folder: Path) -> list[str]:
    """Checks the weights of a folder against its model and returns lines that describe both.

    Raises:
        InteropError: The folder cannot be imported.
    """
    opened = Folder(folder)
    family = family_of(opened.config)
    model = model_of(imported_values(opened))
    weights = named_weights(model)
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    found = placement(family, opened.config, opened.tensors, shapes)
    dtypes = ", ".join(sorted({stored.dtype for stored, _ in found.read}))
    count = sum(weight.numel() for weight in weights.values())
    others = [name for name in (CONFIG, GENERATION_CONFIG, *TOKENIZER_FILES) if opened.has(name)]
    return [
        f"{family.name}: {count:,} parameters in {len(found.read)} tensors of {dtypes}",
        *([f"not read: {', '.join(found.ignored)}"] if found.ignored else []),
        f"files: {', '.join(others)}",
    ]
