"""Docstrings of configurables: every parameter is described, and nothing else is."""

import pytest

from ml.cli import docstrings, registry_catalogue

ENTRIES = [entry for entry in registry_catalogue.entries() if entry.selector.startswith("ml.")]


def test_every_parameter_has_a_description():
    described = {entry.selector: entry.descriptions for entry in ENTRIES}
    assert not [f"{e.selector}.{p.name}" for e in ENTRIES for p in e.parameters if p.name not in described[e.selector]]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_only_parameters_are_described(entry):
    assert entry.descriptions.keys() <= {parameter.name for parameter in entry.parameters}
    assert not [text for text in entry.descriptions.values() if not text.endswith((".", ")", ":"))]


DOC = """A layer.

y = f(x)
    with an indented formula.

Args:
    first: Of one line.
    second: Of two lines, with a
        colon: here.

    third: After an empty line.

Returns:
    fourth: no argument.

More prose.
"""


def test_arguments_are_read_with_their_continuation_lines():
    assert docstrings.descriptions(DOC) == {
        "first": "Of one line.",
        "second": "Of two lines, with a colon: here.",
        "third": "After an empty line.",
    }


def test_prose_has_no_sections():
    assert docstrings.prose(DOC) == "A layer.\n\ny = f(x)\n    with an indented formula.\n\nMore prose."


def test_only_the_arguments_are_omitted():
    kept = "A layer.\n\ny = f(x)\n    with an indented formula.\n\nReturns:\n    fourth: no argument.\n\nMore prose."
    assert docstrings.without_arguments(DOC) == kept
