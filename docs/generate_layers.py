"""Writes docs/layers.md from the code: python docs/generate_layers.py"""

import inspect
from itertools import groupby
from pathlib import Path

import gin

import ml.training  # noqa: F401  (registers everything)
from ml.config.configurable import Configurable, candidates, known_names
from ml.config.provenance import text_of
from ml.config.signatures import EMPTY
from ml.config.types import spell

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


def package(info: Configurable) -> str:
    """The place in the tree that a reader knows: `ml.layers`, `ml.training`, ..."""
    return ".".join(info.selector.split(".")[:2])


def section(info: Configurable) -> str:
    """One configurable: the first paragraph of its docstring, and a table of its parameters."""
    summary = " ".join((inspect.getdoc(info.target) or "").split("\n\n")[0].split())
    lines = [f"### {info.name}", "", f"`{info.selector}`", "", summary]
    if info.parameters:
        lines += ["", "| parameter | type | default |", "|---|---|---|"]
    for spec in info.parameters.values():
        kind = spell(spec.annotation).replace("|", "\\|")
        lines.append(f"| `{spec.name}` | {kind} | {default(spec.default)} |")
    return "\n".join(lines)


def default(value: object) -> str:
    """A default as gin text, or why there is none."""
    if value is EMPTY:
        return "*parent*"
    return "*required*" if value is gin.REQUIRED else f"`{text_of(value)}`"


def page() -> str:
    """The whole page."""
    infos = [info for name in known_names() for info in candidates(name) if info.selector.startswith("ml.")]
    infos.sort(key=lambda info: (package(info), info.name.lower()))
    parts = [HEAD]
    for name, group in groupby(infos, key=package):
        parts += [f"## {name}", *(section(info) for info in group)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
