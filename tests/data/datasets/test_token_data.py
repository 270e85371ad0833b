"""Prepared folders as data, compared with the text they were made from."""

import functools
import json
import os

import numpy as np
import pytest
import torch
from prepared import write_folder

from ml.api import build_trainer, load
from ml.data import DataError, FillInTheMiddle, PackedDocuments, TextData, TextFiles, TokenFiles
from ml.data.errors import MissingData
from ml.data.token_files.reading import data_sha256

TEXTS = [f"document {number} says " + "x y z " * (number % 9) for number in range(40)]


@pytest.fixture
def as_text(tmp_path):
    """Returns the same documents as text data."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for number, text in enumerate(TEXTS):
        (folder / f"{number:03d}.txt").write_text(text)
    return functools.partial(TextData, corpus=functools.partial(TextFiles, str(folder)), validation_fraction=0.0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"separate_documents": True},
        {"sampling": PackedDocuments},
        {"fill_in_the_middle": functools.partial(FillInTheMiddle, prefix=256, suffix=257, middle=258)},
    ],
)
def test_batches_equal_those_of_the_text(as_text, tmp_path, options):
    folder = write_folder(tmp_path / "tokens", TEXTS, shard_tokens=300)
    prepared, text = (data(**options).open(16, 3) for data in (functools.partial(TokenFiles, str(folder)), as_text))
    assert prepared.num_train_tokens == text.num_train_tokens
    assert prepared.num_sequences == text.num_sequences
    for step in (0, 5, 90):
        expected, found = text.batch(4 * step, 4), prepared.batch(4 * step, 4)
        assert found.num_targets == expected.num_targets
        assert found.inputs.keys() == expected.inputs.keys()
        assert all(torch.equal(found.inputs[name], expected.inputs[name]) for name in expected.inputs)


def test_several_folders_are_concatenated(tmp_path):
    whole = write_folder(tmp_path / "whole", TEXTS)
    parts = [write_folder(tmp_path / f"{first}", TEXTS[first : first + 15]) for first in (0, 15, 30)]
    one, several = (TokenFiles(paths).open(16, 0) for paths in (str(whole), list(map(str, parts))))
    assert torch.equal(one.batch(0, 50).tokens, several.batch(0, 50).tokens)
    assert one.train.ends.tolist() == several.train.ends.tolist()


def test_the_split_of_prepare_is_held_out(tmp_path):
    write_folder(tmp_path / "both/train", TEXTS[:30])
    write_folder(tmp_path / "both/validation", TEXTS[30:])
    dataset = TokenFiles(str(tmp_path / "both")).open(16, 0)
    held_out = "".join(text + "\0" for text in TEXTS[30:])
    targets = torch.cat([batch.targets.flatten() for batch in dataset.validation_batches(3)])
    assert bytes(targets[targets != -100].tolist()).decode() == held_out[1:]
    assert dataset.validation_bytes() == dataset.num_validation_tokens == len(held_out) - 1
    alone = TokenFiles(str(tmp_path / "both/train")).open(16, 0)
    assert alone.num_validation_tokens == 0
    assert alone.num_train_tokens == dataset.num_train_tokens
    assert alone.sha256 != dataset.sha256


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 0.6])
def test_a_fraction_holds_out_the_last_documents(tmp_path, fraction):
    folder = write_folder(tmp_path / "tokens", TEXTS)
    dataset = TokenFiles(str(folder), validation_fraction=fraction).open(16, 0)
    stream = "".join(text + "\0" for text in TEXTS).encode()
    trained = bytes(dataset.train.read(0, dataset.train.num_tokens).tolist())
    held_out = bytes(dataset.validation.read(0, dataset.validation.num_tokens).tolist())
    assert trained + held_out == stream
    assert trained.endswith(b"\0")
    assert len(held_out) / len(stream) == pytest.approx(fraction, abs=0.02)


def test_of_one_long_document_the_end_is_held_out(tmp_path):
    folder = write_folder(tmp_path / "tokens", ["abcdefghij" * 100])
    dataset = TokenFiles(str(folder), validation_fraction=0.1).open(16, 0)
    assert dataset.validation.num_tokens == 100
    assert dataset.train.num_tokens == 901


def test_the_hash_depends_on_the_tokens_and_not_on_the_path(tmp_path):
    first, moved, other = (
        write_folder(tmp_path / name, TEXTS[: 40 - cut]) for name, cut in (("a", 0), ("b", 0), ("c", 1))
    )
    hashes = [TokenFiles(str(folder)).open(16, 0).sha256 for folder in (first, moved, other)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_vocabulary_is_known_if_the_folder_exists(tmp_path):
    data = TokenFiles(str(tmp_path / "tokens"))
    assert data.vocab_size is None
    write_folder(tmp_path / "tokens", TEXTS)
    assert data.vocab_size == 256
    assert data.tokenizer.vocab_size == 256
    assert data.separator.text == "\0"
    fill = functools.partial(FillInTheMiddle, prefix=256, suffix=300, middle=258)
    assert TokenFiles(str(tmp_path / "tokens"), fill_in_the_middle=fill).vocab_size == 301


def edit(folder, **changes):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))


DAMAGES = {
    "no folder": (lambda folder: folder.rename(folder.with_name("away")), "no such folder"),
    "cut": (lambda folder: os.truncate(folder / "00000.tokens", 100), "has 100 bytes, expected"),
    "edited": (lambda folder: edit(folder, vocab_size=300), "damaged or was edited"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "has no token files"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_an_unusable_folder_is_refused_on_opening(tmp_path, damage, message):
    folder = write_folder(tmp_path / "tokens", TEXTS)
    data = TokenFiles(str(folder))
    damage(folder)
    with pytest.raises(DataError, match=message):
        data.open(16, 0)


def test_a_folder_that_is_not_prepared_is_refused_with_its_setting_and_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = build_trainer(load("recipes/token_files_30m.gin", "TokenFiles.paths = 'tokens'"))
    expected = (
        f"Trainer.data needs TokenFiles.paths: no such folder of token files: tokens (from {tmp_path}); "
        "make it with `python -m ml prepare TEXTS --output=tokens`"
    )
    with pytest.raises(MissingData) as caught:
        trainer.open_data()
    assert str(caught.value) == expected


def test_a_file_truncated_later_is_an_error_of_the_batch(tmp_path):
    folder = write_folder(tmp_path / "tokens", TEXTS, shard_tokens=10_000)
    dataset = TokenFiles(str(folder)).open(16, 0)
    dataset.batch(0, 4)
    os.truncate(folder / "00000.tokens", 20)
    with pytest.raises(DataError, match=r"00000\.tokens has 20 bytes"):
        dataset.batch(0, 40)


def test_a_token_outside_the_vocabulary_is_an_error_of_the_batch(tmp_path):
    folder = write_folder(tmp_path / "tokens", ["\1" * 500])
    np.full(501, 255, dtype=np.uint8).tofile(folder / "00000.tokens")
    batch = TokenFiles(str(folder)).open(16, 0).batch(0, 1)
    with pytest.raises(DataError, match=r"the data has token 255, but LanguageModel\.vocab_size is 200"):
        batch.require_below(200)
    assert batch.require_below(256) is batch


def test_too_few_tokens_are_an_error_that_names_the_folder(tmp_path):
    folder = write_folder(tmp_path / "tokens", ["short"])
    with pytest.raises(DataError, match="tokens: the training text has 6 tokens, but one sequence takes 17"):
        TokenFiles(str(folder)).open(16, 0)


def test_a_corpus_without_documents_is_refused(tmp_path):
    folder = write_folder(tmp_path / "tokens", [])
    for options in ({}, {"sampling": PackedDocuments}, {"validation_fraction": 0.5}):
        with pytest.raises(DataError, match="tokens"):
            TokenFiles(str(folder), **options).open(16, 0)


def test_folders_with_different_tokenizers_are_refused(tmp_path):
    folders = [write_folder(tmp_path / name, TEXTS) for name in "ab"]
    manifest = json.loads((folders[1] / "manifest.json").read_text())
    manifest["tokenizer"]["arguments"] = {"added_tokens": ["<x>"]}
    edit(folders[1], tokenizer=manifest["tokenizer"], tokenizer_identity=None, sha256=data_sha256(manifest))
    with pytest.raises(DataError, match=r"b has another tokenizer than .*a: ByteTokenizer \(257 tokens.*\(256 tokens"):
        TokenFiles(list(map(str, folders))).open(16, 0)
