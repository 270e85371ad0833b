"""Tokenizers against the libraries they wrap."""

import functools
import json
import sys

import numpy as np
import pytest
import sentencepiece
import small_tokenizers
import tiktoken
import tiktoken_ext.openai_public as named_encodings
import tokenizers
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX as QWEN2_PATTERN

from ml.data import DataError
from ml.data.tokenizers import HuggingFaceTokenizer, SentencePieceTokenizer, TiktokenTokenizer
from ml.data.tokenizers.saved import open_tokenizer, save_tokenizer, verify_tokenizer
from ml.data.tokenizers.word_ends import WORD_END, is_cut_at_word_ends

ODD = 'def f(x):\n\treturn "schön 漢字 😀 \\N{SNOWMAN}"   # <|endoftext|> and </s>, 12345\r\n\r\n  it\'s  '


@pytest.fixture(params=small_tokenizers.ALL, ids=lambda make: make.__name__)
def tokenizer(request, tmp_path):
    return request.param(tmp_path)


def test_encoded_text_is_decoded_to_the_same_text(tokenizer):
    for text in ("", "a", "some text\n", ODD, small_tokenizers.some_text()[:20_000]):
        tokens = tokenizer.encode(text)
        assert tokenizer.decode(tokens) == text
        assert tokens.dtype.kind == "u"
        assert len(tokens) == 0 or tokens.max() < tokenizer.vocab_size


def test_a_batch_is_encoded_like_each_text_separately(tokenizer):
    texts = [ODD, "", "one more", ODD * 3]
    for alone, batched in zip(map(tokenizer.encode, texts), tokenizer.encode_batch(texts), strict=True):
        assert np.array_equal(alone, batched)
        assert alone.dtype == batched.dtype


def test_special_tokens_in_text_are_text(tokenizer):
    for text in ("<|endoftext|>", "</s>", "x<|endoftext|>y</s>z", "<0x0A>"):
        assert tokenizer.end_of_document not in tokenizer.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_tokens_represent_the_bytes_of_their_text(tokenizer):
    added = int(isinstance(tokenizer, SentencePieceTokenizer))  # SentencePiece adds a leading space
    for text in ("plain", ODD, "漢字", small_tokenizers.some_text()[:5000]):
        assert tokenizer.num_bytes(tokenizer.encode(text)) == len(text.encode()) + added
    tokens = tokenizer.encode(ODD)
    assert sum(tokenizer.num_bytes(tokens[i : i + 1]) for i in range(len(tokens))) == tokenizer.num_bytes(tokens)


@pytest.mark.parametrize("make", small_tokenizers.ALL[1:])
def test_a_special_token_has_no_bytes(make, tmp_path):
    tokenizer = make(tmp_path)
    assert tokenizer.num_bytes(np.array([tokenizer.end_of_document])) == 0


def test_a_saved_tokenizer_works_without_its_source_files(tokenizer, tmp_path):
    tokens, end = tokenizer.encode(ODD), tokenizer.end_of_document
    saved = json.loads(json.dumps(save_tokenizer(tokenizer, tmp_path / "kept")))
    for file in tmp_path.iterdir():
        if file.is_file():
            file.unlink()
    again = open_tokenizer(saved, tmp_path / "kept")
    assert np.array_equal(again.encode(ODD), tokens)
    assert (again.end_of_document, again.vocab_size) == (end, tokenizer.vocab_size)
    assert again.decode(tokens) == ODD
    assert verify_tokenizer(saved, tmp_path / "kept") == []
    assert save_tokenizer(again, tmp_path / "once more") == saved


def test_a_changed_file_of_a_saved_tokenizer_is_named(tmp_path):
    saved = save_tokenizer(small_tokenizers.tiktoken(tmp_path), tmp_path / "kept")
    (tmp_path / "kept" / "ranks.tiktoken").write_text("IQ== 0\n")
    (problem,) = verify_tokenizer(saved, tmp_path / "kept")
    assert "ranks.tiktoken has changed" in problem
    (tmp_path / "kept" / "ranks.tiktoken").unlink()
    (problem,) = verify_tokenizer(saved, tmp_path / "kept")
    assert "cannot read" in problem


def test_hugging_face_equals_the_library(tmp_path):
    ours = small_tokenizers.hugging_face(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(ours.path)
    text = small_tokenizers.some_text()
    assert ours.encode(text).tolist() == theirs.encode(text, add_special_tokens=False).ids
    assert ours.end_of_document == theirs.token_to_id("<|endoftext|>") == 0
    assert ours.vocab_size == theirs.get_vocab_size()


def test_tiktoken_and_hugging_face_agree_on_one_vocabulary(tmp_path):
    text = small_tokenizers.some_text() + ODD
    theirs = small_tokenizers.hugging_face(tmp_path).encode(text)
    assert np.array_equal(small_tokenizers.tiktoken(tmp_path).encode(text) + 1, theirs)


def test_sentence_piece_equals_the_library(tmp_path):
    ours = small_tokenizers.sentence_piece(tmp_path)
    theirs = sentencepiece.SentencePieceProcessor(model_file=ours.path)
    assert ours.encode(ODD).tolist() == theirs.encode(ODD)
    assert ours.end_of_document == theirs.eos_id()
    assert ours.begin_of_document == theirs.bos_id()


@pytest.fixture
def with_symbols(tmp_path):
    """A model with user-defined symbols: a marker and a run of line ends."""
    with (tmp_path / "symbols.model").open("wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(small_tokenizers.some_text().splitlines()),
            model_writer=model,
            vocab_size=600,
            byte_fallback=True,
            hard_vocab_limit=False,
            user_defined_symbols=["<turn>", "\n\n"],
            control_symbols=["<tool>"],
            normalization_rule_name="identity",
            minloglevel=2,
        )
    return functools.partial(SentencePieceTokenizer, str(tmp_path / "symbols.model"))


def test_symbols_in_text_stay_text_and_are_special_tokens_by_name(with_symbols):
    ours, text = with_symbols(), "one<turn>two\n\nthree <tool> </s>"
    library = sentencepiece.SentencePieceProcessor(model_file=ours.path)
    turn, lines, tool = (library.piece_to_id(piece) for piece in ("<turn>", "\n\n", "<tool>"))
    tokens = ours.encode(text).tolist()
    assert not {turn, tool, library.eos_id()} & set(tokens)
    assert lines in tokens  # white space is no marker
    assert ours.decode(np.array(tokens)) == text
    assert with_symbols(symbols_in_text=True).encode(text).tolist() == library.encode(text)
    assert ours.encode("one two").tolist() == library.encode("one two")
    assert [ours.special_token(name) for name in ("<turn>", "<tool>", "<s>")] == [turn, tool, library.bos_id()]
    assert ours.special_token("\n\n") is None
    assert ours.num_bytes(np.array([turn, tool])) == 0
    assert with_symbols(end_of_document="<turn>", begin_of_document="<tool>").end_of_document == turn
    assert with_symbols(end_of_document="", begin_of_document="<tool>").begin_of_document == tool
    assert with_symbols(end_of_document="").end_of_document is None
    with pytest.raises(DataError, match=r"end_of_document: '<nothing>' is not a special token of .*, which has <s>"):
        _ = with_symbols(end_of_document="<nothing>").end_of_document


@pytest.mark.parametrize(
    "parts", [["foo(", "bar)"], ["User: ", "Hi", "\n", " schön"], ["a", "<turn>", "b"], ["", "x"], ["x ", " y  "]]
)
def test_parts_of_a_text_have_no_space_between_them(with_symbols, parts):
    tokenizer = with_symbols()
    tokens = []
    for index, part in enumerate(parts):
        spans = tokenizer.encode_with_spans(part, is_start=index == 0)
        tokens += spans.tokens.tolist()
        covered = {place for start, end in zip(spans.starts, spans.ends, strict=True) for place in range(start, end)}
        assert covered == set(range(len(part)))
    assert tokenizer.decode(np.array(tokens, dtype=np.int64)) == "".join(parts)


def test_files_are_read_lazily():
    for cls in (HuggingFaceTokenizer, SentencePieceTokenizer, functools.partial(TiktokenTokenizer, pattern=".")):
        tokenizer = cls(path="nowhere/at all")
        with pytest.raises(DataError, match=r"cannot read nowhere/at all.*\.path.*No such file"):
            _ = tokenizer.vocab_size


@pytest.mark.parametrize(
    ("cls", "content", "message"),
    [
        (HuggingFaceTokenizer, b"{}", "is not a tokenizer.json"),
        (HuggingFaceTokenizer, b"\xff", "is not a tokenizer.json"),
        (SentencePieceTokenizer, b"no model", "is not a SentencePiece model"),
        (functools.partial(TiktokenTokenizer, pattern="."), b"IQ== 0\nIg==\n", r"file:2 is not a token in base64"),
        (functools.partial(TiktokenTokenizer, pattern="."), b"IQ== 0\n", "lacks some of the 256 single bytes"),
    ],
)
def test_a_file_with_other_content_is_refused(cls, content, message, tmp_path):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(DataError, match=message):
        cls(path=str(tmp_path / "file")).encode("text")


def test_an_encoding_that_tiktoken_cannot_load_is_an_error(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="tiktoken has no 'gpt5'; available are"):
        TiktokenTokenizer("gpt5").encode("text")

    def unreachable(name):
        raise ConnectionError("no network")

    monkeypatch.setattr(tiktoken, "get_encoding", unreachable)
    with pytest.raises(DataError, match=r"cannot load 'gpt2' \(ConnectionError: no network\).*TIKTOKEN_CACHE_DIR"):
        TiktokenTokenizer("gpt2").encode("text")


def test_options_that_do_not_match_a_file_of_ranks_are_errors(tmp_path):
    def make(pattern=small_tokenizers.GPT2_PATTERN, **options):
        return TiktokenTokenizer(path=str(small_tokenizers.ranks(tmp_path)), pattern=pattern, **options)

    with pytest.raises(DataError, match=r"'</s>' is not a special token; there are none"):
        _ = make(end_of_document="</s>").end_of_document
    with pytest.raises(DataError, match="begin_of_document: '<s>' is not a special token"):
        _ = make(begin_of_document="<s>").begin_of_document
    special = {"<s>": 1000, "<|endoftext|>": 1001}
    beginning = make(special_tokens=special, begin_of_document="<s>")
    assert (beginning.begin_of_document, beginning.end_of_document) == (1000, 1001)
    saved = save_tokenizer(beginning, tmp_path / "saved")
    assert open_tokenizer(saved, tmp_path / "saved").begin_of_document == 1000
    with pytest.raises(DataError, match=r"special_tokens: 5 is already a token of .*ranks\.tiktoken"):
        make(special_tokens={"<|endoftext|>": 5}).encode("text")
    with pytest.raises(DataError, match=r"pattern: tiktoken rejects '\('"):
        make("(").encode("text")
    with pytest.raises(DataError, match=r"pattern does not match all text: it reduces .* to '"):
        make(r"\w+").encode("text")
    with pytest.raises(DataError, match=r"pattern: tiktoken fails with '\|'"):
        make("|").encode("text")


def test_a_named_encoding_is_tiktokens(tmp_path, monkeypatch):
    theirs = small_tokenizers.tiktoken(tmp_path)._encoding
    monkeypatch.setattr(tiktoken, "get_encoding", {"gpt2": theirs}.__getitem__)
    ours = TiktokenTokenizer("gpt2")
    assert ours.encode(ODD).tolist() == theirs.encode_ordinary(ODD)
    assert ours.end_of_document == theirs.eot_token


@pytest.mark.parametrize("module", ["tiktoken", "tokenizers", "sentencepiece"])
def test_a_missing_library_is_named(module, tmp_path, monkeypatch):
    make = {
        "tiktoken": small_tokenizers.tiktoken,
        "tokenizers": small_tokenizers.hugging_face,
        "sentencepiece": small_tokenizers.sentence_piece,
    }[module]
    tokenizer = make(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=rf"needs the library {module}: pip install 'juniper-trainer\[tokenizers\]'"):
        tokenizer.encode("text")


def test_the_end_of_document_token_is_read_from_the_checkpoint_folder(tmp_path):
    small_tokenizers.hugging_face(tmp_path)
    added = json.loads((tmp_path / "tokenizer.json").read_text())["added_tokens"]
    turn = added[0] | {"id": 600, "content": "<|turn|>"}
    small_tokenizers.hugging_face(tmp_path, added_tokens=[*added, turn])
    assert HuggingFaceTokenizer(str(tmp_path)).end_of_document == 0  # the usual one
    for token in ("<|turn|>", {"content": "<|turn|>"}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": token}))
        assert HuggingFaceTokenizer(str(tmp_path)).end_of_document == 600
    assert HuggingFaceTokenizer(str(tmp_path), end_of_document="<|endoftext|>").end_of_document == 0
    with pytest.raises(DataError, match=r"'</s>' is not a special token of .*, which has <\|endoftext\|>, <\|turn\|>"):
        _ = HuggingFaceTokenizer(str(tmp_path), end_of_document="</s>").end_of_document


def test_documents_begin_and_end_with_the_tokens_of_the_settings_or_the_post_processor(tmp_path):
    small_tokenizers.hugging_face(tmp_path)
    added = json.loads((tmp_path / "tokenizer.json").read_text())["added_tokens"]
    names = {"<s>": 600, "[CLS]": 601, "[SEP]": 602}
    added += [added[0] | {"id": token, "content": name} for name, token in names.items()]
    file = str(tmp_path / "tokenizer.json")

    def borders(pattern=None, path=file, **options):
        tokens = {name: {"id": name, "ids": [token], "tokens": [name]} for name, token in names.items()}
        parts = [
            {"SpecialToken": {"id": part, "type_id": 0}} if part in names else {"Sequence": {"id": part, "type_id": 0}}
            for part in (pattern or "").split()
        ]
        processor = {"type": "TemplateProcessing", "single": parts, "pair": [], "special_tokens": tokens}
        small_tokenizers.hugging_face(tmp_path, added_tokens=added, post_processor=processor if pattern else None)
        tokenizer = HuggingFaceTokenizer(path, **options)
        kept = open_tokenizer(save_tokenizer(tokenizer, tmp_path / "saved"), tmp_path / "saved")
        assert kept.begin_of_document == tokenizer.begin_of_document
        assert kept.end_of_document == tokenizer.end_of_document
        assert not {0, 600, 601, 602} & set(tokenizer.encode("ab").tolist())
        return tokenizer.begin_of_document, tokenizer.end_of_document

    for path in (file, str(tmp_path)):
        assert borders(path=path) == (None, 0)
        assert borders("<s> A", path) == (None, 0)  # unless it is asked for
    assert borders("<s> A", post_processor=True) == (600, 0)
    assert borders("[CLS] A [SEP]", post_processor=True) == (601, 602)
    assert borders("[CLS] A [SEP]", post_processor=True, begin_of_document="<s>") == (600, 602)
    assert borders("A [SEP]", post_processor=True) == (None, 602)
    with pytest.raises(DataError, match=r"adds \[CLS\], <s> to a text, and documents have one token at either end"):
        borders("[CLS] <s> A", post_processor=True)
    with pytest.raises(DataError, match="the post-processor adds nothing"):
        borders(post_processor=True)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "[SEP]"}))
    for path in (file, str(tmp_path)):
        assert borders(path=path) == (600, 602)
    assert borders("[CLS] A", post_processor=True) == (601, 602)
    assert borders(begin_of_document="") == (None, 602)
    assert borders(begin_of_document="[CLS]") == (601, 602)
    with pytest.raises(DataError, match="begin_of_document: '</s>' is not a special token"):
        borders(begin_of_document="</s>")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "add_bos_token": False}))
    assert borders() == (None, 0)
    for key, border in (("eos_token", "end"), ("bos_token", "begin")):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({key: "<nothing>"}))
        message = rf"tokenizer_config.json#{key} is '<nothing>', which is not a special token of .*{border}_of_document"
        with pytest.raises(DataError, match=message):
            borders()
        assert borders(**{f"{border}_of_document": "<s>"})[border == "end"] == 600
        assert borders(added_tokens=["<nothing>"])[border == "end"] == 603


def test_padding_and_truncation_are_disabled(tmp_path):
    short = small_tokenizers.hugging_face(
        tmp_path,
        truncation={"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        padding={
            "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
            "pad_token": "<|endoftext|>",
        },
    )  # fmt: skip
    assert short.decode(short.encode(ODD)) == ODD


def test_tokens_without_exact_bytes_are_refused_for_byte_counts(tmp_path):
    words = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0, "word": 1}, unk_token="[UNK]"))
    words.decoder = tokenizers.decoders.WordPiece()
    words.save(str(tmp_path / "tokenizer.json"))
    tokenizer = HuggingFaceTokenizer(str(tmp_path))
    assert tokenizer.encode("word").tolist() == [1]
    assert tokenizer.end_of_document is None
    with pytest.raises(DataError, match=r"\(decoder: WordPiece\) do not represent fixed bytes"):
        tokenizer.num_bytes(np.array([1]))


def test_metaspace_with_byte_fallback_has_bytes(tmp_path):
    entries = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a"]
    model = tokenizers.models.BPE(
        {entry: n for n, entry in enumerate(entries)}, [("▁", "a")], byte_fallback=True, unk_token="<unk>"
    )
    made = tokenizers.Tokenizer(model)
    made.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    made.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    )
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = HuggingFaceTokenizer(str(tmp_path))
    for text in ("a a", "漢 a\n", " "):
        assert tokenizer.num_bytes(tokenizer.encode(text)) == len(text.encode())
    assert tokenizer.safe_cut is None


def _published(name: str) -> str:
    """Returns the pattern of a named encoding, without its ranks, which are not on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(named_encodings, "load_tiktoken_bpe", lambda *_, **__: {b"a": 0})
        patch.setattr(named_encodings, "data_gym_to_mergeable_bpe_ranks", lambda **_: {b"a": 0})
        return getattr(named_encodings, name)()["pat_str"]


def _llama3() -> str:
    import inspect

    return inspect.signature(TikTokenConverter.__init__).parameters["pattern"].default


PATTERNS = {
    "GPT-2": small_tokenizers.GPT2_PATTERN,
    "r50k_base": _published("r50k_base"),
    "cl100k_base": _published("cl100k_base"),
    "o200k_base": _published("o200k_base"),
    "Llama 3": _llama3(),
    "Qwen 2": QWEN2_PATTERN,
}


def _random_text(generator: np.random.Generator, length: int) -> str:
    """Returns random text with all character classes of the patterns."""
    alphabet = [
        "a",
        "Z",
        "s",
        "'s",
        "\n",
        "\r",
        "\r\n",
        " ",
        "  ",
        "\t",
        "1",
        "234",
        ".",
        "/",
        "é",
        "漢",
        "か",
        "ж",
        "나",
        "ก",
        "。",
        "\u2028",
        "\x85",
        "\u0301",
        "😀",
    ]
    return "".join(generator.choice(alphabet, length))


@pytest.mark.parametrize("name", PATTERNS)
def test_text_cut_at_line_ends_has_the_tokens_of_the_whole(name, tmp_path):
    """Checks every position where text may be cut, in random text with all character classes of the patterns."""
    tokenizer = small_tokenizers.tiktoken(tmp_path, PATTERNS[name])
    assert tokenizer.safe_cut is WORD_END
    generator = np.random.default_rng(0)
    cuts = 0
    for _ in range(300):
        text = _random_text(generator, 60)
        whole, content = tokenizer.encode(text).tolist(), text.encode()
        for match in WORD_END.finditer(content):
            first, second = content[: match.end()].decode(), content[match.end() :].decode()
            assert [*tokenizer.encode(first), *tokenizer.encode(second)] == whole, (text, match)
            cuts += 1
    assert cuts > 500


@pytest.mark.parametrize("name", PATTERNS)
def test_tiktoken_encodes_text_above_the_limit_of_its_patterns(name, tmp_path):
    tokenizer = small_tokenizers.tiktoken(tmp_path, PATTERNS[name])
    generator = np.random.default_rng(2)
    for _ in range(300):
        text = _random_text(generator, 40)
        assert tokenizer._encoded_by_words(text).tolist() == tokenizer.encode(text).tolist(), text
    if name == "cl100k_base":
        text = "a" + " " * 1_000_000 + "b"
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_dropout_of_a_tokenizer_is_off(tmp_path):
    plain = small_tokenizers.hugging_face(tmp_path / "plain")
    description = json.loads(tokenizers.Tokenizer.from_file(str(plain.path)).to_str())
    description["model"]["dropout"] = 0.5
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    text = small_tokenizers.some_text()[:5000]
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert library.encode(text).ids != library.encode(text).ids
    noisy = HuggingFaceTokenizer(str(tmp_path / "tokenizer.json"))
    assert noisy.encode(text).tolist() == plain.encode(text).tolist()


def test_hugging_face_text_may_be_cut_where_no_pattern_spans(tmp_path):
    generator = np.random.default_rng(1)
    plain = json.loads(tokenizers.Tokenizer.from_file(small_tokenizers.hugging_face(tmp_path).path).to_str())
    byte_level = plain["pre_tokenizer"]
    split = {"type": "Split", "pattern": {"Regex": QWEN2_PATTERN}, "behavior": "Isolated", "invert": False}
    fine = [
        {},
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level | {"use_regex": False}]}},
    ]
    for changes in fine:
        tokenizer = small_tokenizers.hugging_face(tmp_path, **changes)
        assert tokenizer.safe_cut is WORD_END, changes
        for _ in range(50):
            content = _random_text(generator, 60).encode()
            whole = tokenizer.encode(content.decode()).tolist()
            for match in WORD_END.finditer(content):
                pieces = content[: match.end()].decode(), content[match.end() :].decode()
                assert [*tokenizer.encode(pieces[0]), *tokenizer.encode(pieces[1])] == whole
    word = plain["added_tokens"][0] | {"id": 600, "special": False}
    doubtful = [
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": byte_level | {"add_prefix_space": True}},
        {"pre_tokenizer": byte_level | {"use_regex": False}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split | {"behavior": "MergedWithNext"}, byte_level]}},
        {"pre_tokenizer": None},
        {"added_tokens": [*plain["added_tokens"], word | {"content": "end\n"}]},
        {"added_tokens": [*plain["added_tokens"], word | {"content": "end", "rstrip": True}]},
    ]
    for changes in doubtful:
        assert small_tokenizers.hugging_face(tmp_path, **changes).safe_cut is None, changes


def test_other_patterns_are_never_cut():
    assert not is_cut_at_word_ends(r"\S+\s*")
