"""Identity of tokenizers, and special tokens that are added to them."""

import functools
import json

import numpy as np
import pytest
import small_tokenizers
from prepared import write_folder

from ml.data import ByteTokenizer, DataError, TokenFiles
from ml.data.token_files.reading import TokenFolder, data_sha256
from ml.data.tokenizers import HuggingFaceTokenizer, SentencePieceTokenizer, TiktokenTokenizer
from ml.data.tokenizers.identity import described, fits, largest_of
from ml.data.tokenizers.saved import open_tokenizer, save_tokenizer

NAMES = ["<|im_start|>", "<|im_end|>"]
TEXT = 'def f(x):\n\treturn "<|im_start|>schön"'


def content(folder):
    small_tokenizers.hugging_face(folder)
    return json.loads((folder / "tokenizer.json").read_text())


def written(folder, description, **options):
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(description, indent=3))
    return HuggingFaceTokenizer(str(folder), **options)


def test_identity_is_that_of_the_content_wherever_it_is_read_from(tmp_path):
    tokenizer = small_tokenizers.hugging_face(tmp_path / "a")
    description = content(tmp_path / "b")
    merges = description["model"]["merges"]
    assert isinstance(merges[0], list)
    description["model"]["merges"] = [" ".join(pair) for pair in merges]
    description["padding"] = None
    vocabulary = description["model"]["vocab"]
    description["model"]["vocab"] = dict(reversed(vocabulary.items()))
    same = [
        written(tmp_path / "b", description),
        written(tmp_path / "b", description, end_of_document="<|endoftext|>", begin_of_document=""),
        open_tokenizer(save_tokenizer(tokenizer, tmp_path / "c"), tmp_path / "c"),
    ]
    assert {one.identity for one in same} == {tokenizer.identity}
    for made in (make(tmp_path / f"{n}") for n, make in enumerate(small_tokenizers.ALL)):
        kept = open_tokenizer(save_tokenizer(made, tmp_path / "kept"), tmp_path / "kept")
        assert kept.identity == made.identity
        assert kept.lineage == made.lineage


CHANGES = {
    "swapped entries": lambda d: d["model"]["vocab"].update(a=d["model"]["vocab"]["b"], b=d["model"]["vocab"]["a"]),
    "swapped merges": lambda d: d["model"].update(merges=[*d["model"]["merges"][:-2], *d["model"]["merges"][:-3:-1]]),
    "a special token renamed": lambda d: d["added_tokens"][0].update(content="<|other|>"),
    "a special token more": lambda d: d["added_tokens"].append(d["added_tokens"][0] | {"id": 600, "content": "<more>"}),
    "a normalizer": lambda d: d.update(normalizer={"type": "NFC"}),
    "another pattern": lambda d: d["pre_tokenizer"].update(add_prefix_space=True),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_identity_changes_with_vocabulary_merges_and_special_tokens(tmp_path, change):
    description = content(tmp_path / "a")
    before = written(tmp_path / "a", description)
    identity = before.identity
    CHANGES[change](description)
    after = written(tmp_path / "b", description)
    assert after.identity != identity
    assert fits(after, before) == (change == "a special token more")


def ranks(folder, **options):
    special = {"<|endoftext|>": 599}
    file = str(small_tokenizers.ranks(folder))
    return TiktokenTokenizer(path=file, pattern=small_tokenizers.GPT2_PATTERN, special_tokens=special, **options)


def pairs(folder, **options):
    small_tokenizers.hugging_face(folder)
    return HuggingFaceTokenizer(str(folder), **options)


def pieces(folder, **options):
    return SentencePieceTokenizer(small_tokenizers.sentence_piece(folder).path, **options)


KINDS = {"bytes": lambda folder, **options: ByteTokenizer(**options), "ranks": ranks, "pairs": pairs, "pieces": pieces}


@pytest.mark.parametrize("kind", KINDS)
def test_added_tokens_follow_the_vocabulary_and_change_no_text(tmp_path, kind):
    make = functools.partial(KINDS[kind], tmp_path)
    before, after = make(), make(added_tokens=NAMES)
    size = before.vocab_size
    assert after.vocab_size == size + 2
    assert [after.special_token(name) for name in NAMES] == [size, size + 1]
    assert before.special_token(NAMES[0]) is None
    tokens = after.encode(TEXT)
    assert tokens.tolist() == before.encode(TEXT).tolist()
    assert tokens.dtype.itemsize >= np.min_scalar_type(size + 1).itemsize
    marked = np.concatenate((tokens, [size], tokens[:1], [size + 1]))
    assert after.decode(np.array([size, size + 1])) == "".join(NAMES)
    assert after.decode(marked).startswith(after.decode(tokens) + NAMES[0])
    assert after.num_bytes(marked) == before.num_bytes(tokens) + before.num_bytes(tokens[:1])
    kept = open_tokenizer(save_tokenizer(after, tmp_path / "kept"), tmp_path / "kept")
    assert kept.identity == after.identity != before.identity
    assert kept.special_token(NAMES[1]) == size + 1
    assert fits(after, before)
    assert not fits(before, after)
    assert fits(after, make(added_tokens=NAMES[:1]))
    assert not fits(after, make(added_tokens=NAMES[::-1]))


def test_tokens_that_a_file_has_keep_their_ids_and_ordinary_ones_are_refused(tmp_path):
    description = content(tmp_path)
    end = description["added_tokens"][0]
    added = [end, *(end | {"id": 600 + n, "content": name} for n, name in enumerate(NAMES))]
    saved = written(tmp_path, description | {"added_tokens": added})
    assert saved.identity == pairs(tmp_path / "other", added_tokens=NAMES).identity
    again = HuggingFaceTokenizer(str(tmp_path), added_tokens=[*NAMES, "<|endoftext|>"])
    assert again.vocab_size == saved.vocab_size
    assert again.identity == saved.identity
    with pytest.raises(DataError, match="added_tokens: 'a' is an ordinary token"):
        _ = pairs(tmp_path / "other", added_tokens=["a"]).vocab_size


def test_a_manifest_has_the_identity_and_an_older_one_is_computed(tmp_path):
    tokenizer = pairs(tmp_path / "pairs")
    folder = write_folder(tmp_path / "tokens", ["one", "two"], tokenizer)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest.pop("tokenizer_identity") == tokenizer.identity
    assert manifest["sha256"] == data_sha256(manifest)  # as it was without
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert TokenFolder(folder).tokenizer.identity == tokenizer.identity
    newer = write_folder(tmp_path / "newer", ["three"] * 9, tokenizer)
    assert TokenFiles([str(newer), str(folder)], validation_fraction=0.0).open(4, 0).num_train_tokens > 0


def test_two_tokenizers_are_named_with_their_files(tmp_path):
    one, other = pairs(tmp_path / "one"), ByteTokenizer()
    assert described(one) == (
        f"HuggingFaceTokenizer of {tmp_path}/one/tokenizer.json (600 tokens, SHA-256 {one.identity[:12]})"
    )
    message = r"must share one tokenizer: a has Hugging.*one/tokenizer.json .*, b has ByteTokenizer \(256 tokens"
    with pytest.raises(DataError, match=message):
        largest_of({"a": one, "b": other})
