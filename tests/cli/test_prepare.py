"""`python -m ml prepare` and `train_tokenizer` from the command line."""

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time

import pytest
import tokenizers

from ml.cli.preparation_display import PlainDisplay, TerminalDisplay, display_on
from ml.cli.verbs import main
from ml.data.token_files.reading import TokenFolder


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Calls a verb in this process; returns its output, or its message if it exits with 2."""

    def run(*arguments, check=0):
        assert main(list(map(str, arguments))) == check
        told = capsys.readouterr()
        return told.err if check else told.out

    monkeypatch.chdir(tmp_path)
    return run


def test_a_tokenizer_is_trained_and_used_by_prepare(call, tmp_path):
    lines = [json.dumps({"body": f"the {n}th document is about {n * n} things\n" * 3}) for n in range(200)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, "broken"]))
    reading = ("--text_key=body", "--on_error=skip")
    told = call("train_tokenizer", "a.jsonl", *reading, "--vocab_size=300", "--output=t/tokenizer.json")
    assert "t/tokenizer.json: 300 tokens, trained on 1 files\n1 invalid rows skipped, the first: a.jsonl:201: " in told
    binding = "--gin.HuggingFaceTokenizer.path='t/tokenizer.json'"
    choice = ("--tokenizer=HuggingFaceTokenizer", binding, "--validation_fraction=0.2", "--num_workers=2")
    told = call("prepare", "a.jsonl", "--output=out", *reading, *choice)
    folders = [TokenFolder(tmp_path / "out" / part) for part in ("train", "validation")]
    assert sum(folder.num_documents for folder in folders) == 200
    for folder in folders:
        size = f"{folder.num_documents:,} documents, {folder.num_tokens:,} tokens, {folder.num_bytes:,} bytes"
        rate = f"({folder.num_bytes / folder.num_tokens:.2f} a token)"
        assert f"{folder.path.relative_to(tmp_path)}: {size} {rate}" in told
    assert re.search(r"1 invalid rows skipped\n.*\ndone in \d+\.\d s$", told.strip(), re.DOTALL)
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "t/tokenizer.json"))
    first = folders[0].read(0, int(folders[0].document_ends[0]))
    assert library.decode(first[:-1].tolist()) in [json.loads(line)["body"] for line in lines]
    assert library.id_to_token(int(first[-1])) == "<|endoftext|>"
    assert call("prepare", "--output=out", "--verify") == "out/train is intact\nout/validation is intact\n"
    os.truncate(tmp_path / "out/train/00000.tokens", 7)
    assert "00000.tokens has 7 bytes, expected" in call("prepare", "--output=out", "--verify", check=2)


def test_the_tokens_at_the_borders_of_documents_are_printed(call, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("one two")
    told = call("prepare", "a.txt", "--output=bytes")
    assert "documents end with token 0; separated ones begin with it too, inserted when they are read\n" in told
    words = {"one": 0, "two": 1, "[UNK]": 2}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.save("tokenizer.json")
    choice = ("--tokenizer=HuggingFaceTokenizer", "--gin.HuggingFaceTokenizer.path='tokenizer.json'")
    assert main(["prepare", "a.txt", "--output=words", *choice]) == 0
    told = capsys.readouterr()
    assert "documents have no end token\n" in told.out
    assert "warning: the tokenizer has no end-of-document token" in told.err
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save("tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>"}))
    told = call("prepare", "a.txt", "--output=more", *choice)
    assert "documents end with </s> (token 4) and begin with <s> (token 3), which is inserted when" in told
    named = "--gin.HuggingFaceTokenizer.end_of_document='<eos>'"
    told = call("prepare", "a.txt", "--output=wrong", *choice, named, check=2)
    assert "end_of_document: '<eos>' is not a special token of tokenizer.json, which has </s>, <s>" in told
    assert not (tmp_path / "wrong").exists()


SENTENCE_PIECE_OF_3 = ["--gin_bindings=SentencePieceTokenizer.path = 3"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "--output=out"], "name the files or folders to read"),
        (["prepare", "nowhere.txt", "--output=out"], "no such file or folder: nowhere.txt"),
        (["prepare", "a.txt", "--output=out", "--validation_fraction=1"], "--validation_fraction must be in [0, 1)"),
        (["prepare", "a.txt", "--output=out", "--num_workers=0"], "--num_workers must be positive, not 0"),
        (["prepare", "a.txt", "--output=out", "--shard_tokens=0"], "--shard_tokens must be positive, not 0"),
        (["prepare", "a.txt", "--output=out", "--tokenizer=ByteTokeniser"], "did you mean 'ByteTokenizer'?"),
        (["prepare", "a.txt", "--output=out", "--tokenizer=AdamW"], "there is no tokenizer 'AdamW'"),
        (
            ["prepare", "a.txt", "--output=out", "--tokenizer=HuggingFaceTokenizer"],
            "HuggingFaceTokenizer.path must be set, and nothing sets it",
        ),
        (
            ["prepare", "a.txt", "--output=out", "--gin.HuggingFaceTokenizer.path='x'"],
            "HuggingFaceTokenizer is not built: nothing selects it",
        ),
        (
            ["prepare", "a.txt", "--output=o", "--tokenizer=SentencePieceTokenizer", *SENTENCE_PIECE_OF_3],
            "SentencePieceTokenizer.path must be str, not 3 (int)",
        ),
        (["prepare", "b.jsonl", "--output=out"], "b.jsonl:2: not JSON"),
        (["prepare", "a.txt", "--output=out", "--verify"], "--verify reads only --output"),
        (["prepare", "--output=out", "--verify"], "no such folder of token files: out"),
        (["train_tokenizer", "a.txt", "--output=t.json", "--vocab_size=257"], "--vocab_size must be above 257"),
        (["train_tokenizer", "a.txt", "--output=a.txt", "--vocab_size=300"], "a.txt (--output) already exists"),
    ],
)  # fmt: skip
def test_an_error_is_one_message_and_exit_code_2(arguments, message, call, tmp_path):
    (tmp_path / "a.txt").write_text("some text")
    (tmp_path / "b.jsonl").write_text('{"text": "good"}\n{"text": "cut')
    assert message in call(*arguments, check=2)
    if arguments[1] != "b.jsonl":
        assert sorted(file.name for file in tmp_path.iterdir()) == ["a.txt", "b.jsonl"]


def test_training_does_not_depend_on_hash_seeds_and_threads(call, tmp_path):
    words = [f"w{n % 977}x{n % 13} " for n in range(20_000)]
    (tmp_path / "a.txt").write_text("".join(words))
    arguments = ("train_tokenizer", "a.txt", "--vocab_size=700", "--special_token=<e>")
    call(*arguments, "--output=one.json")
    other = os.environ | {"PYTHONHASHSEED": "2", "TOKENIZERS_PARALLELISM": "false"}
    subprocess.run([sys.executable, "-m", "ml", *arguments, "--output=two.json"], cwd=tmp_path, env=other, check=True)
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "one.json"))
    assert library.token_to_id("<e>") == 0
    assert library.decode(library.encode("schön w5x5 漢字").ids) == "schön w5x5 漢字"


def test_text_with_too_few_pairs_gives_a_smaller_vocabulary_and_a_warning(call, tmp_path):
    (tmp_path / "a.txt").write_text("aaaa aaaa")
    told = call("train_tokenizer", "a.txt", "--output=t.json", "--vocab_size=5000")
    assert "fewer than 5,000" in told


def test_output_in_the_folder_of_the_sources_is_no_source(call, tmp_path):
    (tmp_path / "books/sub").mkdir(parents=True)
    (tmp_path / "books/a.txt").write_text("some text " * 20)
    (tmp_path / "books/sub/b.jsonl").write_text('{"text": "one"}')
    told = call("prepare", "books", "--output=books/tokens")
    assert told.startswith("text: 1 files, JSON lines: 1 files\n")
    before = files(tmp_path / "books/tokens")
    assert "already complete" in call("prepare", "books", "--output=books/sub/../tokens")
    assert files(tmp_path / "books/tokens") == before
    assert TokenFolder(tmp_path / "books/tokens").num_documents == 2
    refused = call("prepare", "books", "--output=other", check=2)  # these tokens are not those of this command
    assert "books/tokens/" in refused


def test_a_special_token_may_be_a_word(call, tmp_path):
    (tmp_path / "a.txt").write_text("the end of the endless friend ends " * 50)
    call("train_tokenizer", "a.txt", "--vocab_size=300", "--special_token=end", "--output=t.json")
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "t.json"))
    library.encode_special_tokens = True
    for text in ("end", "the end", "endless friends end", "\nend\n"):
        ids = library.encode(text).ids
        assert library.token_to_id("end") not in ids
        assert library.decode(ids) == text
    assert len(library.encode("the the").ids) == 2  # other words are merged
    refused = call("train_tokenizer", "a.txt", "--vocab_size=300", "--special_token=e", "--output=u.json", check=2)
    assert "the special token 'e' is also the token of a byte" in refused


@pytest.mark.slow
def test_ctrl_c_on_the_command_line_leaves_a_resumable_state(call, tmp_path):
    """Runs the command in a process with workers. Kills are tested with `prepare` itself."""
    text = "".join(f"line {n} of a text that is long enough to take its time\n" for n in range(200_000))
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "little.txt").write_text(text[:50_000])
    call("train_tokenizer", "little.txt", "--output=t.json", "--vocab_size=400")
    command = ("prepare", "a.txt", "--tokenizer=HuggingFaceTokenizer", "--gin.HuggingFaceTokenizer.path='t.json'")
    call(*command, "--output=undisturbed")
    process = subprocess.Popen(
        [sys.executable, "-m", "ml", *command, "--output=out", "--num_workers=2"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while progress_of(tmp_path) == [0, 0, 0] and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert said == "interrupted. Run the same command again to resume\n"
    assert "resuming at" in call(*command, "--output=out")
    assert files(tmp_path / "out") == files(tmp_path / "undisturbed")


def progress_of(folder):
    file = folder / "out" / "progress.json"
    return json.loads(file.read_text())["position"] if file.exists() else [0, 0, 0]


def files(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_help_does_not_import_torch(tmp_path):
    code = "import sys; import ml.cli.verbs; print([m for m in ('torch', 'numpy', 'tokenizers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def test_a_terminal_shows_a_progress_bar(monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")
    now = [0.0]
    display = TerminalDisplay(stream := Terminal(), lambda: now[0])
    display.start(0, 4_000_000)
    for seconds, num_bytes in ((0.05, 1), (1.0, 1_000_000), (2.0, 2_000_000)):
        now[0] = seconds
        display.advance(num_bytes, num_bytes // 4)
    assert stream.getvalue().count("\r") == 2  # the first update is throttled
    assert stream.getvalue().endswith("\r" + "━" * 12 + "─" * 12 + "   50%  500,000 tokens  1.0 MB/s  2s left\x1b[K")
    display.say("a.jsonl:3: not JSON")
    assert "\r\x1b[Ka.jsonl:3: not JSON\n\r━" in stream.getvalue()
    display.close()
    assert stream.getvalue().endswith("\r\x1b[K")
    monkeypatch.setenv("COLUMNS", "20")
    now[0] = 3.0
    display.advance(3_000_000, 1)
    assert len(stream.getvalue().split("\r")[-1].removesuffix("\x1b[K")) == 19


def test_a_pipe_gets_occasional_lines():
    now = [0.0]
    display = PlainDisplay(stream := io.StringIO(), lambda: now[0])
    display.start(1_000_000, 5_000_000)
    for seconds in range(25):
        now[0] = seconds
        display.advance(1_000_000 + seconds * 100_000, seconds)
    assert stream.getvalue().splitlines() == [
        "resuming at 20% of 5,000,000 bytes",
        " 40%  10 tokens  0.1 MB/s  30s left",
        " 60%  20 tokens  0.1 MB/s  20s left",
    ]


def test_the_display_matches_the_stream():
    assert type(display_on(io.StringIO())) is PlainDisplay
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w") as stream:
        assert type(display_on(stream)) is TerminalDisplay
    os.close(leader)
