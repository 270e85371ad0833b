"""A run keeps its tokenizer, and what does not have it is refused by name."""

import io
import json
import shutil

import pytest
import torch
from safetensors import safe_open
from small_run import SMALL
from test_launch import weights

import ml
from ml.building import build_trainer
from ml.data import ByteTokenizer, DataError
from ml.data.tokenizers import HuggingFaceTokenizer
from ml.data.tokenizers.training import train_byte_pairs
from ml.training.run_tokenizer import read_run_tokenizer

STILL = ["AdamW.learning_rate = 1e-30", "Trainer.num_steps = 1", "CosineSchedule.warmup_steps = 0"]
FEW = ["Trainer.weight_average = None", "Checkpoints.every = None"]
NEW = ["TextData.tokenizer = @ByteTokenizer", "ByteTokenizer.added_tokens = ['<|im_start|>', '<|im_end|>']"]
TIED = ["LanguageModel.tie_word_embeddings = True"]


@pytest.fixture
def load(folder):
    """Loads a small configuration with further bindings."""

    def load(*bindings, **options):
        text = f"TextFiles.paths = {str(folder / 'text.txt')!r}"
        return ml.load("recipes/tiny.gin", [*SMALL, *STILL, *FEW, text, *bindings], **options)

    return load


def train(config, run_dir):
    stream = io.StringIO()
    run = ml.train(config, run_dir, device="cpu", stream=stream)
    return run, stream.getvalue()


def byte_pairs(file, text="one and two and three and four"):
    train_byte_pairs([text * 9], file, 270, ["<|endoftext|>"], show_progress=False)
    return [
        "TextData.tokenizer = @HuggingFaceTokenizer",
        f"HuggingFaceTokenizer.path = {str(file)!r}",
        "LanguageModel.vocab_size = 270",
    ]


def expected_rows(table, size, initialization):
    """Rows of a grown table: those before, the mean or fresh ones for two tokens, and padding."""
    rows = torch.full((size, table.shape[1]), float("nan"))
    rows[: len(table)] = table
    rows[256:258] = table[:256].double().mean(dim=0).float() if initialization == "mean" else float("nan")  # not known
    return rows


CASES = {  # bindings of the source, of the new run, state, initialization
    "tied": (TIED, [*TIED, "LanguageModel.vocab_size = 258"], "weights", "mean"),
    "padded": ([], ["LanguageModel.vocab_size = 264"], "weights", "mean"),
    "was padded": (["LanguageModel.vocab_size = 260"], ["LanguageModel.vocab_size = 260"], "weights", "mean"),
    "fresh": ([], ["LanguageModel.vocab_size = 264"], "weights", "fresh"),
    "average": (["Trainer.weight_average = @ExponentialMovingAverage"], ["LanguageModel.vocab_size = 264"], "average",
                "mean"),
    "adapters": ([], ["LanguageModel.vocab_size = 264", "Linear.apply_peft = @LoRA"], "weights", "mean"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_embedding_and_head_grow_by_added_tokens(load, tmp_path, case):
    of_source, of_run, state, initialization = CASES[case]
    source, _ = train(load(*of_source, "AdamW.learning_rate = 0.01"), tmp_path / "source")
    fresh = {} if initialization == "mean" else {"FromRun.new_tokens": "'fresh'"}
    bindings = [*NEW, *of_run, *(f"{name} = {value}" for name, value in fresh.items())]
    run, printed = train(load(*bindings, init_from=source, init_state=state), tmp_path / "run")
    before = dict(source.build(average=state == "average").named_parameters())
    after = weights(run)
    names = [name for name in ("embeddings.token.weight", "head.weight") if name in before]
    assert len(names) == (1 if case == "tied" else 2)
    new = build_trainer(run.config).start(torch.device("cpu")).model.state_dict()
    for name in names:
        rows = expected_rows(before[name].detach(), len(after[name]), initialization)
        is_known = ~rows.isnan().any(dim=1)
        assert torch.allclose(after[name][is_known], rows[is_known], rtol=1e-5, atol=1e-7)
        assert torch.equal(after[name][~is_known], new[name][~is_known])
    kind = "the mean of the earlier rows" if initialization == "mean" else "a fresh initialization"
    assert f"tokens 256 to 257 are new and start from {kind} in {', '.join(names)}" in printed
    grows = f"{names[-1]} grows from 256 to {len(after[names[-1]])} rows"
    assert (grows in printed) == ("was padded" not in case)
    others = [name for name in before if name not in names]
    assert all(torch.equal(after[name], before[name]) for name in others)


def test_a_smaller_vocabulary_or_one_that_grows_without_tokens_known_is_refused(load, tmp_path):
    source, _ = train(load("LanguageModel.vocab_size = 264"), tmp_path / "source")
    with pytest.raises(ml.UserError, match=r"of another shape(.|\n)*embeddings.token.weight"):
        train(load("LanguageModel.vocab_size = 260", init_from=source), tmp_path / "run")


def test_data_without_a_tokenizer_takes_that_of_the_run_it_starts_from(load, tmp_path):
    bindings = byte_pairs(tmp_path / "pairs.json")
    source, _ = train(load(*bindings), tmp_path / "source")
    config = load("LanguageModel.vocab_size = 270", init_from=source)
    run, _ = train(config, tmp_path / "run")
    identity = read_run_tokenizer(source.path).identity
    assert run.tokenizer.identity == identity
    shutil.rmtree(source.path)
    again = ml.open_run(run.path)
    assert again.tokenizer.identity == identity  # the run has its own copy
    assert isinstance(again.tokenizer, HuggingFaceTokenizer)
    assert len(again.generate("one", num_tokens=3)) > 0


@pytest.mark.parametrize("data", ["TextData", "Mixture"])
def test_a_validation_set_takes_the_tokenizer_of_the_training_data(load, folder, tmp_path, data):
    bindings = [*byte_pairs(tmp_path / "pairs.json")]
    if data == "Mixture":
        first, *others = bindings
        bindings = [
            *others, f"own/{first}", "Trainer.data = @Mixture",
            "Mixture.datasets = {'without': @TextData, 'own': @TextData}",
            "Mixture.weights = {'without': 1.0, 'own': 1.0}",
        ]  # fmt: skip
    else:
        bindings = [binding.replace("TextData.tokenizer", "data/TextData.tokenizer") for binding in bindings]
    more = ["Trainer.validation = {'books': @Validation}", "books/Validation.data = @TextData"]
    trainer = build_trainer(load(*bindings, *more, f"books/TextFiles.paths = {str(folder / 'more/a.txt')!r}"))
    data = trainer.open_data()
    (books,) = data.validation_sets
    expected = HuggingFaceTokenizer(str(tmp_path / "pairs.json"))
    assert books.dataset.tokenizer.identity == data.training.tokenizer.identity == expected.identity
    tokens = expected.encode((folder / "more/a.txt").read_text()).tolist()
    assert books.dataset.validation.tokens.tolist() == [*tokens, expected.end_of_document]


def test_data_with_another_tokenizer_is_refused_and_both_are_named(load, folder, tmp_path):
    bindings = byte_pairs(tmp_path / "pairs.json")
    other = ["Trainer.validation = {'books': @Validation}", "books/Validation.data = @TextData"]
    other += ["books/TextData.tokenizer = @ByteTokenizer"]
    names = r"ByteTokenizer \(256 tokens, SHA-256 [0-9a-f]{12}\).*HuggingFaceTokenizer of .*pairs.json \(270 tokens"
    with pytest.raises(DataError, match=f"the validation set books has another tokenizer than the .*: {names}"):
        build_trainer(load(*bindings, *other)).open_data()
    source, _ = train(load(*bindings), tmp_path / "source")
    different = byte_pairs(tmp_path / "other.json", "five and six and seven")
    for wrong, place in ((different, "other.json"), (["TextData.tokenizer = @ByteTokenizer"], "ByteTokenizer")):
        config = load(*wrong, "LanguageModel.vocab_size = 270", init_from=source)
        with pytest.raises(ml.UserError, match=rf"the run .*source has another tokenizer than the data: .*{place}"):
            ml.train(config, tmp_path / "refused", device="cpu", stream=io.StringIO())
    teacher = ["Trainer.distillation = @Distillation", f"Distillation.teacher = {str(source.path)!r}"]
    with pytest.raises(ml.UserError, match=r"the teacher .*source has another tokenizer than the data: .*other.json"):
        train(load(*different, *teacher), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_a_run_is_resumed_with_its_tokenizer_alone(load, tmp_path):
    bindings = byte_pairs(tmp_path / "pairs.json")
    config = load(*bindings, "Trainer.num_steps = 2", "Trainer.stop_at_step = 1")
    run, _ = train(config, tmp_path / "run")
    record = json.loads((run.path / "tokenizer/record.json").read_text())
    assert record["identity"] == HuggingFaceTokenizer(str(tmp_path / "pairs.json")).identity
    byte_pairs(tmp_path / "pairs.json", "five and six and seven")
    with pytest.raises(DataError, match=r"the data has HuggingFaceTokenizer of .*, and the run .* was begun with Hugg"):
        train(load(*bindings, "Trainer.num_steps = 2"), tmp_path / "run")


def test_an_export_names_the_tokenizer(run, tmp_path):
    run.export(tmp_path / "weights.safetensors")
    with safe_open(tmp_path / "weights.safetensors", "pt") as file:
        assert file.metadata()["tokenizer_identity"] == ByteTokenizer().identity


def test_a_damaged_record_is_named(run, tmp_path):
    copy = shutil.copytree(run.path, tmp_path / "copy")
    (copy / "tokenizer/record.json").write_text("{}")
    with pytest.raises(DataError, match=r"record.json is damaged: KeyError"):
        _ = ml.open_run(copy).tokenizer
