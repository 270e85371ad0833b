"""Interrupted preparations: kills, full disks, Ctrl-C, changed sources."""

import contextlib
import gzip
import json
import os
import resource
import shutil
import signal
import time

import numpy as np
import pytest
import small_tokenizers
import sources
from sources import TEXTS, WRITERS, Silent, as_lines, contents, documents_of, run_in_a_process

from ml.data import ByteTokenizer, DataError
from ml.data.preparation import Reading, Settings, find_sources, preparing
from ml.errors import RunFailure


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_preparation_killed_at_any_moment_resumes_to_the_same_output(num_workers, prepared, small_tasks, tmp_path):
    WRITERS["mixed"](tmp_path / "in")
    (tmp_path / "in" / "long.txt").write_text(small_tokenizers.some_text()[:40_000])
    (tmp_path / "in" / "long.jsonl.gz").write_bytes(gzip.compress(as_lines(TEXTS)))
    tokenizer = small_tokenizers.hugging_face(tmp_path / "tokenizer")
    options = {"tokenizer": tokenizer, "validation_fraction": 0.3, "shard_tokens": 900}
    begun = time.monotonic()
    prepared("undisturbed", **options)
    whole = time.monotonic() - begun  # calibrated to the current speed of this machine
    generator = np.random.default_rng(num_workers)
    positions, kills = set(), 0
    while True:
        child = run_in_a_process(lambda: prepared("killed", num_workers=num_workers, **options))
        time.sleep(generator.uniform(0.0, whole / 5 + whole / 40 * kills))
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        if os.waitpid(child, 0)[1] == 0:
            break
        kills += 1
        assert kills < 100
        progress = tmp_path / "killed" / "progress.json"
        if progress.exists():
            positions.add(tuple(json.loads(progress.read_text())["position"]))
    assert kills > 2
    assert len(positions) > 2
    assert contents(tmp_path / "killed") == contents(tmp_path / "undisturbed")


def test_processes_end_with_a_parent_that_was_killed(prepared, small_tasks, tmp_path):
    (tmp_path / "in" / "a.txt").write_text(small_tokenizers.some_text() * 20)
    tokenizer = small_tokenizers.hugging_face(tmp_path / "tokenizer")
    child = run_in_a_process(lambda: prepared(tokenizer=tokenizer, num_workers=3))
    deadline = time.monotonic() + 20
    while not (tmp_path / "out" / "00000.tokens").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    while time.monotonic() < deadline:
        try:
            os.killpg(child, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("processes are left")


class Deadly(ByteTokenizer):
    """A tokenizer whose process is killed, as when memory runs out."""

    def encode(self, text):
        if "boom" in text:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(text)


def test_a_killed_worker_is_reported_and_finished_work_is_kept(prepared, small_tasks, tmp_path, monkeypatch):
    text = "some line\n" * 500
    (tmp_path / "in" / "a.txt").write_text(text)
    (tmp_path / "in" / "b.txt").write_text("boom")
    (tmp_path / "in" / "c.txt").write_text(text)
    monkeypatch.setattr(preparing, "save_tokenizer", lambda *_: {})
    with pytest.raises(RunFailure, match=r"a worker process was killed.*Run the same command again"):
        prepared(tokenizer=Deadly(), num_workers=2)
    assert (tmp_path / "out" / "progress.json").exists()
    (folder,) = prepared()[0].folders
    assert documents_of(folder) == [text, "boom", text]


def test_ctrl_c_commits_and_can_be_resumed(prepared, small_tasks, tmp_path, monkeypatch):
    (tmp_path / "in" / "a.txt").write_text("some line\n" * 500)
    prepared("undisturbed")
    written = []

    def interrupted(self, result, write=preparing._Run._write):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(result)
        write(self, result)

    with monkeypatch.context() as patch:
        patch.setattr(preparing._Run, "_write", interrupted)
        patch.setattr(preparing, "_SECONDS_BETWEEN_COMMITS", 1000.0)
        with pytest.raises(RunFailure, match=r"interrupted.*Run the same command again"):
            prepared(num_workers=2)
    _, display = prepared()
    assert display.begun_at > 0
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


@pytest.mark.parametrize("kind", ["array, indented", "CSV", "Arrow", "Arrow, file", "lines, CRLF", "rows"])
def test_every_format_resumes_where_it_was_interrupted(kind, prepared, small_tasks, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "TEXTS", [f"document {n} of them {'word ' * (n % 30)}" for n in range(120)])
    WRITERS[kind](tmp_path / "in")
    (undisturbed,) = prepared("undisturbed")[0].folders
    assert documents_of(undisturbed) == sources.TEXTS
    written = []

    def interrupted(self, result, write=preparing._Run._write):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(result)
        write(self, result)

    monkeypatch.setattr(preparing._Run, "_write", interrupted)
    failures = []
    while len(failures) < 100:
        try:
            prepared()
            break
        except RunFailure as failure:
            failures.append(failure)
            written.clear()
    assert 0 < len(failures) < 100
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


def test_a_full_disk_is_reported_and_the_preparation_can_be_resumed(prepared, small_tasks, tmp_path):
    """A limit on file sizes simulates a full disk: the system refuses the write in both cases."""
    (tmp_path / "in" / "a.txt").write_text("some line\n" * 2000)
    prepared("undisturbed")
    said = tmp_path / "said"

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
        try:
            prepared()
        except RunFailure as failure:
            said.write_text(str(failure))

    os.waitpid(run_in_a_process(fill), 0)
    assert "out: File too large. Run the same command again to resume" in said.read_text()
    _, display = prepared()
    assert display.begun_at > 3000
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


def test_a_source_that_changed_since_the_last_commit_is_refused(prepared, small_tasks, tmp_path, monkeypatch):
    file = tmp_path / "in" / "a.jsonl"
    file.write_bytes(as_lines(TEXTS) + b"broken")
    with pytest.raises(DataError, match="not JSON"):
        prepared()
    file.write_bytes(as_lines(TEXTS))
    with pytest.raises(DataError, match=r"was started with other sources: a\.jsonl has changed\. Remove .*out"):
        prepared()
    (tmp_path / "in" / "b.txt").write_text("new")
    with pytest.raises(DataError, match=r"changed|is new"):
        prepared()
    file.unlink()
    with pytest.raises(DataError, match=r"is gone|is new"):
        prepared()
    shutil.rmtree(tmp_path / "out")
    sources = find_sources([tmp_path / "in"])
    (tmp_path / "in" / "b.txt").write_text("another")
    with pytest.raises(DataError, match=r"b\.txt has changed during the preparation \(3 bytes then, 7 now\)"):
        preparing.prepare(sources, ByteTokenizer(), Settings(tmp_path / "out", Reading()), Silent())


def test_a_source_that_changes_while_being_read_is_refused(prepared, small_tasks, tmp_path):
    (tmp_path / "in" / "a.txt").write_text("some line\n" * 500)
    sources = find_sources([tmp_path / "in"])

    class Changing(Silent):
        def advance(self, num_bytes, num_tokens):
            with (tmp_path / "in" / "a.txt").open("a") as file:
                file.write("more")

    with pytest.raises(DataError, match=r"a\.txt has changed during the preparation"):
        preparing.prepare(sources, ByteTokenizer(), Settings(tmp_path / "out", Reading()), Changing())
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_complete_output_is_kept_and_other_output_is_refused(prepared, tmp_path):
    (tmp_path / "in" / "a.txt").write_text("some text\n" * 30)
    assert prepared()[0].seconds is not None
    before = contents(tmp_path / "out")
    assert prepared()[0].seconds is None
    for options, name in (
        ({"validation_fraction": 0.1}, "validation_fraction = 0.0, not 0.1"),
        ({"shard_tokens": 5}, "shard_tokens = 1073741824, not 5"),
        ({"text_key": "body"}, 'text_key = "text", not "body"'),
        ({"tokenizer": small_tokenizers.hugging_face(tmp_path / "t")}, "tokenizer = .*ByteTokenizer.*not.*HuggingFace"),
    ):
        with pytest.raises(DataError, match=f"out was started with {name}"):
            prepared(**options)
    assert contents(tmp_path / "out") == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(DataError, match=r"full \(--output\) contains other files, such as thesis\.tex"):
        prepared("full")
    with pytest.raises(DataError, match=r"thesis\.tex \(--output\) is not a folder"):
        prepared("full/thesis.tex")


def test_two_preparations_cannot_write_to_one_folder(prepared, small_tasks, tmp_path):
    (tmp_path / "in" / "a.txt").write_text("some line\n" * 500)
    held, release = os.pipe()

    class Waiting(Silent):
        def advance(self, num_bytes, num_tokens):
            os.read(held, 1)

    def first():
        sources = find_sources([tmp_path / "in"])
        preparing.prepare(sources, ByteTokenizer(), Settings(tmp_path / "out", Reading()), Waiting())

    child = run_in_a_process(first)
    deadline = time.monotonic() + 20
    while not (tmp_path / "out" / "00000.tokens").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    with pytest.raises(DataError, match=r"another process is preparing .*out"):
        prepared()
    os.write(release, b"x" * 100)
    assert os.waitpid(child, 0)[1] == 0
    assert prepared()[0].seconds is None
