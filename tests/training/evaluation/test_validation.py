"""The loss on held-out text, by brute force."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from saved import trained_model

from ml.data import ByteTokenizer, DataError
from ml.training import Float32

CPU = torch.device("cpu")


@pytest.mark.parametrize("num_tokens", [None, 50])
def test_bits_per_byte_is_the_mean_over_single_bytes_each_predicted_once(tiny, num_tokens):
    trainer = tiny(f"Validation.num_tokens = {num_tokens}")
    state = trainer.start(CPU)
    dataset = trainer.data.open(trainer.sequence_length, trainer.seed)
    result = trainer.validations[""].measure(state.model, dataset, 3, Float32(), CPU)

    text = torch.from_numpy(dataset.validation.tokens.astype("int64"))
    end = len(text) - 1 if num_tokens is None else num_tokens
    nats = []
    state.model.eval()
    for place in range(end):
        context = text[place - place % 16 : place + 1]
        log_probabilities = F.log_softmax(state.model(context[None])[0, -1].double(), dim=-1)
        nats.append(-log_probabilities[text[place + 1]].item())
    # The logits of a longer context differ by rounding in float32.
    assert result.loss == pytest.approx(sum(nats) / end, rel=1e-5)
    assert result.bits_per_byte == pytest.approx(sum(nats) / end / math.log(2), rel=1e-5)


def test_measuring_leaves_the_model_in_training(tiny):
    trainer = tiny()
    state = trainer.start(CPU)
    dataset = trainer.data.open(trainer.sequence_length, trainer.seed)
    results = {trainer.validations[""].measure(state.model, dataset, 3, Float32(), CPU) for _ in range(2)}
    assert len(results) == 1
    assert all(module.training for module in state.model.modules())
    assert all(parameter.grad is None for parameter in state.model.parameters())


def test_validation_without_held_out_text_stops_before_the_first_step(tiny, run_in):
    with pytest.raises(DataError, match="no text is held out"):
        run_in(tiny("TextData.validation_fraction = 0.0"))


def test_a_run_without_validation_needs_no_held_out_text(tiny, run_in):
    folder, outcome, _ = run_in(
        tiny("TextData.validation_fraction = 0.0", "Trainer.validation = None", "Trainer.num_steps = 3")
    )
    assert outcome.is_finished
    assert all("validation_loss" not in record for record in folder.metrics())


NAMED = """
Trainer.validation = {'held_out': @Validation, 'books': @Validation}
books/Validation.data = @TextData
books/TextFiles.paths = 'books.txt'
books/Validation.every = 3
held_out/Validation.num_tokens = 50
"""


class OtherUnits(ByteTokenizer):
    """Two bytes a token, so that tokens and bytes are not the same number."""

    vocab_size = 256

    def encode(self, text):
        return super().encode(text)[::2]

    def num_bytes(self, tokens):
        return 2 * len(tokens)


def by_hand(model, tokens, length=16):
    """The sum in float64 of what each token costs after its window, in nats."""
    nats = []
    for place in range(len(tokens) - 1):
        logits = model(tokens[None, place - place % length : place + 1])[0, -1].double()
        nats.append(-F.log_softmax(logits, dim=-1)[tokens[place + 1]].item())
    return sum(nats)


@pytest.fixture
def books(tmp_path, monkeypatch):
    """A text in a separate file of the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "books.txt").write_text("Call me Ishmael. Some years ago, never mind how long precisely. " * 5)
    return tmp_path / "books.txt"


def test_sets_by_name_have_their_own_data_and_rhythm(tiny, run_in, books):
    trainer = tiny(NAMED)
    folder, _, printed = run_in(trainer)
    records = {record["step"]: record for record in folder.metrics()}
    measured = {step: {n for n in record if n.startswith("validation")} for step, record in records.items()}
    of_books = {"validation_books_loss", "validation_books_bits_per_byte"}
    held_out = {"validation_held_out_loss", "validation_held_out_bits_per_byte"}
    assert {step for step, names in measured.items() if of_books <= names} == {3, 6, 9, 12}
    assert {step for step, names in measured.items() if held_out <= names} == {5, 10, 12}
    assert re.search(r"step 12/12 .*held_out \d\.\d{4} bits/byte  books \d\.\d{4} bits/byte", printed)
    model = trained_model(trainer, folder).eval()
    text = torch.tensor(list(books.read_bytes() + b"\0"))
    loss = by_hand(model, text) / (len(text) - 1)
    assert records[12]["validation_books_loss"] == pytest.approx(loss, rel=1e-5)
    assert records[12]["validation_books_bits_per_byte"] == pytest.approx(loss / math.log(2), rel=1e-5)


def test_a_set_counts_bytes_with_its_tokenizer(tiny, books, monkeypatch):
    trainer = tiny(NAMED)
    trainer.data.lend_tokenizer(OtherUnits)
    state = trainer.start(CPU)
    (one,) = [one for one in trainer.open_data().validation_sets if one.name == "books"]
    result = one.validation.measure(state.model, one.dataset, 3, Float32(), CPU)
    assert result.bits_per_byte == pytest.approx(result.loss / math.log(2) / 2)


def test_what_a_set_leaves_open_for_the_run_does_not_change_it(tiny, books):
    trainer = tiny(NAMED, "TextData.validation_fraction = 0.2")
    data = trainer.open_data()
    held_out, own = (one.dataset for one in data.validation_sets)
    assert held_out is data.training
    assert own.num_validation_tokens == len(books.read_bytes())  # and not a fifth of it
    assert trainer.validations["books"].num_tokens is None


def test_a_set_with_other_text_changes_no_result_and_does_not_prevent_resuming(tiny, run_in, books):
    run_in(tiny(NAMED))
    books.write_text(books.read_text().replace("Ishmael", "Jonathan"))
    assert run_in(tiny(NAMED))[1].is_finished


def test_a_measurement_can_be_stopped_between_batches(tiny):
    trainer = tiny()
    state = trainer.start(CPU)
    (one,) = trainer.open_data().validation_sets
    asked = []

    def after_three():
        asked.append(len(asked))
        return len(asked) > 3

    assert one.validation.measure(state.model, one.dataset, 1, Float32(), CPU, after_three) is None
    assert asked == [0, 1, 2, 3]
    assert all(module.training for module in state.model.modules())


@pytest.mark.parametrize(
    ("bindings", "message"),
    [
        (["Trainer.validation = {'my books': @Validation}"], "must have names that are identifiers, not my books"),
        (["TextData.validation_fraction = 1.0"], "holds out everything"),
        ([NAMED, "books/TextData.validation_fraction = 0.5"], "validation_fraction"),
        ([NAMED, "Trainer.model = @LanguageModel", "books/Validation.data = @ImageTextData"], "the model takes none"),
    ],
)
def test_sets_that_cannot_be_are_refused_when_they_are_built(tiny, bindings, message):
    with pytest.raises(ValueError, match=message):
        tiny(*bindings)


def test_a_set_without_text_is_refused_before_anything_is_written(tiny, run_in, books, tmp_path):
    books.write_text("")
    with pytest.raises(DataError, match="the validation set books has nothing to predict"):
        run_in(tiny(NAMED))
    assert not (tmp_path / "run").exists()
