"""Writes docs/layers.md from the code: python docs/generate_layers.py"""

from itertools import groupby
from pathlib import Path

from ml.cli import docstrings, registry_catalogue
from ml.cli.catalogue import DECIDED, REQUIRED, Entry

PAGE = Path(__file__).with_name("layers.md")
HEAD = """# Layers, and everything else that can be configured

Generated from the code by `python docs/generate_layers.py`. *parent* marks what the parent decides and nobody can bind;
*required* what a configuration must set.

The names of attributes are the scopes: `embeddings`, `decoder`, `head`; `block_0`, `block_1`, ... in a sequence;
`mixer_norm`, `mixer`, `mlp_norm`, `mlp` in a block, with `mixer_output_norm` and `mlp_output_norm` where it has them;
`query`, `key`, `value`, `output`, `query_norm`, `key_norm` and `rotary` in attention; `gate`, `up`, `down` in MLPs;
`router`, `experts`, `expert_0`, ..., and `shared_expert` in a mixture of experts; `adapter` in a linear layer;
`weight`, `bias`, `A_log`, ... for parameters, with `initialization` below. [Models](models.md) shows how they go
together.
"""


def package(entry: Entry) -> str:
    """The package that a reader knows: `ml.layers`, `ml.training`, ..."""
    return ".".join(entry.selector.split(".")[:2])


def section(entry: Entry) -> str:
    """One configurable: the prose of its docstring, and a table of its parameters."""
    lines = [f"### {entry.name}", "", f"`{entry.selector}`", "", docstrings.prose(entry.doc)]
    if entry.parameters:
        lines += ["", "| parameter | type | default | description |", "|---|---|---|---|"]
    for parameter in entry.parameters:
        cells = [f"`{parameter.name}`", parameter.kind, default(parameter.default)]
        cells.append(entry.descriptions.get(parameter.name, ""))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def default(text: str) -> str:
    """A default as gin text, or why there is none."""
    return {DECIDED: "*parent*", REQUIRED: "*required*"}.get(text, f"`{text}`")


def page() -> str:
    """The whole page."""
    entries = [entry for entry in registry_catalogue.entries() if entry.selector.startswith("ml.")]
    entries.sort(key=lambda entry: (package(entry), entry.name.lower()))
    parts = [HEAD]
    for name, group in groupby(entries, key=package):
        parts += [f"## {name}", *(section(entry) for entry in group)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
