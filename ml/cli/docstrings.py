"""Google-style docstrings taken apart: the prose, and the description of each argument."""

import re
from collections.abc import Iterator

_SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Yields):$")
_ARGUMENT = re.compile(r"^ {4}(\w+): (.+)$")


def descriptions(doc: str) -> dict[str, str]:
    """The descriptions under `Args:`, each on one line, by the name of the argument.

    Args:
        doc: A docstring without the indentation of the code around it.
    """
    found: dict[str, list[str]] = {}
    name = ""
    for section, line in _lines(doc):
        if section != "Args":
            continue
        if match := _ARGUMENT.match(line):
            name = match[1]
            found[name] = [match[2]]
        elif name and line.strip():
            found[name].append(line.strip())
    return {name: " ".join(lines) for name, lines in found.items()}


def without_arguments(doc: str) -> str:
    """The docstring without `Args:`."""
    return _joined(line for section, line in _lines(doc) if section != "Args")


def prose(doc: str) -> str:
    """The docstring without all of its sections: the summary and the paragraphs after it."""
    return _joined(line for section, line in _lines(doc) if not section)


def _lines(doc: str) -> Iterator[tuple[str, str]]:
    """Each line with the section that it belongs to; a section ends where the text is no longer indented."""
    section = ""
    for line in doc.splitlines():
        if line and not line[0].isspace():
            heading = _SECTION.match(line)
            section = heading[1] if heading else ""
        yield section, line


def _joined(lines: Iterator[str]) -> str:
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
