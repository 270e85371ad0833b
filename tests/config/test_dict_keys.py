"""Duplicate keys in dict literals."""

import pytest
from small_model import build_on_meta

from ml.config import ConfigError, configurable, load


@configurable
class Shelf:
    def __init__(self, *, books: dict | None = None, boxes: list | tuple = ()):
        self.books, self.boxes = books, boxes


@configurable
class Book:
    pass


TWICE = {
    "strings": ("Shelf.books = {'a': 1, 'b': 2, 'a': 3}", "the dict has the key 'a' twice"),
    "equal numbers": ("Shelf.books = {1: 'a', 1.0: 'b'}", "the dict has the key 1.0 twice"),
    "a number and a truth value": ("Shelf.books = {1: 'a', True: 'b'}", "the dict has the key True twice"),
    "tuples": ("Shelf.books = {(1, 2): 1, (1, 2): 2}", "the dict has the key (1, 2) twice"),
    "nested": ("Shelf.books = {'a': {'b': 1, 'b': 2}}", "the dict has the key 'b' twice"),
    "in a list": ("Shelf.boxes = [1, {'b': 1, 'b': 2}]", "the dict has the key 'b' twice"),
    "in a macro": ("BOOKS = {'b': 1, 'b': 2}\nShelf.books = %BOOKS", "the dict has the key 'b' twice"),
    "a macro and its value": ("B = 'b'\nShelf.books = {%B: 1, 'b': 2}", "the dict has the key 'b' twice"),
    "two macros of one value": ("A = 1\nB = 1\nShelf.books = {%A: 1, %B: 2}", "the dict has the key 1 twice"),
    "one macro twice": ("A = 1\nShelf.books = {%A: 1, %A: 2}", "the dict has the key %A twice"),
    "two spellings of a class": (
        "Shelf.books = {@Book: 1, @test_dict_keys.Book: 2}",
        "the dict has the key @Book twice",
    ),
    "no key": ("Shelf.books = {[1]: 2}", "[1] cannot be a key"),
    "a macro that is no key": ("A = [1]\nShelf.books = {%A: 2}", "[1] cannot be the key of a dict"),
}


@pytest.mark.parametrize(("text", "message"), TWICE.values(), ids=TWICE)
def test_a_duplicate_key_is_one_error_with_its_place(text, message):
    with pytest.raises(ConfigError) as caught:
        load((), ["Shelf.boxes = [1]", text], root=Shelf)
    (problem,) = caught.value.problems
    assert problem.location.source == "--gin_bindings[1]"
    assert message in problem.message


def test_the_line_of_the_second_key_is_named():
    with pytest.raises(ConfigError, match=r"--gin_bindings\[0\]:3: .*the key 'a' twice"):
        load((), "Shelf.books = {\n    'a': 1,\n    'a': 2,\n}\n", root=Shelf)


def test_equal_keys_of_different_dicts_are_valid():
    config = load((), "Shelf.books = {'a': {'a': 1}, 'b': {'a': 1}, 'c': [{'a': 1}]}", root=Shelf)
    assert config.build(Shelf).books == {"a": {"a": 1}, "b": {"a": 1}, "c": [{"a": 1}]}


def test_duplicate_names_of_blocks_in_a_pattern_are_an_error():
    blocks = "LanguageModel.decoder = @Pattern\nPattern.blocks = {'a': @DecoderBlock, 'a': @wide/DecoderBlock}"
    with pytest.raises(ConfigError, match="the dict has the key 'a' twice"):
        load((), blocks, root=build_on_meta)
