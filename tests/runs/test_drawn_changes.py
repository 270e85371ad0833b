"""Random changes of a run: each is resumed with everything reported, or refused with advice that works when typed."""

import collections
import functools
import io
import random
import re

import pytest
from small_run import SMALL

import ml
from ml.building import _trainer_on_meta
from ml.config import load
from ml.runs.continuation import continuation
from ml.training import RunFolder

NUM_PAIRS = 200
CONSTANT = "Trainer.schedule = @ConstantSchedule"
NEUTRAL = [
    "Checkpoints.every = 3",
    "Trainer.log_every = 2",
    "Trainer.num_loader_workers = 0",
    "Trainer.stop_at_step = 3",
]
NEUTRAL += ["Checkpoints.keep = 1", "Trainer.validation = None"]
FROM_A_STEP = ["AdamW.learning_rate = 0.01", "Trainer.batch_size = 6", "Trainer.max_grad_norm = 0.5", CONSTANT]
FROM_A_STEP += ["AdamW.weight_decay = 0.3", "CosineSchedule.final_fraction = 0.3"]
LENGTHS = ["Trainer.num_steps = 8", "Trainer.num_steps = 6", "Trainer.num_steps = 3"]
FIXED = ["LanguageModel.hidden_size = 48", "Trainer.seed = 3", "Trainer.sequence_length = 32", "RMSNorm.epsilon = 0.1"]


@pytest.fixture(scope="module")
def runs(folder, tmp_path_factory):
    """Two runs with four steps: one with a cosine, one with a constant schedule."""
    path = tmp_path_factory.mktemp("drawn")
    data = f"TextFiles.paths = {str(folder / 'text.txt')!r}"
    own = {path / "cosine": [data], path / "constant": [data, CONSTANT]}
    bindings = [binding for binding in SMALL if "dropout" not in binding]
    for run, more in own.items():
        config = ml.load("recipes/tiny.gin", [*bindings, *more])
        ml.train(config, run, device="cpu", stream=io.StringIO())
    return {run: [*bindings, *more] for run, more in own.items()}


def drawn(seed):
    """Returns changes of a run, of some kinds."""
    draw = random.Random(seed)
    chosen = draw.sample(NEUTRAL, draw.randrange(3)) + draw.sample(FROM_A_STEP, draw.randrange(3))
    chosen += draw.sample(LENGTHS, draw.randrange(2)) + (draw.sample(FIXED, 1) if draw.random() < 0.2 else [])
    is_replaced = CONSTANT in chosen  # then the options of the other schedule have no place
    return [one for one in chosen if not (is_replaced and "Cosine" in one)]


@pytest.fixture
def decide(monkeypatch):
    """Makes the decision of a start for real; configurations are loaded once, without the rehearsal of a step."""

    @functools.cache
    def loaded(files, bindings):
        return load(files, list(bindings), root=_trainer_on_meta, shipped=ml.SHIPPED_CONFIGS)

    monkeypatch.setattr("ml.runs.continuation.load", lambda file, trust_code: loaded(str(file), ()))

    def decide(run, bindings, extend=False):
        config = loaded("recipes/tiny.gin", tuple(bindings))
        return continuation(config, RunFolder(run), extend=extend)

    return decide


def kind_of(message):
    kinds = {
        "cannot change in a run": "fixed",
        "steps have been taken": "short",
        "Set a schedule that begins": "schedule",
        "add extend to change it": "extend",
    }
    (kind,) = [kind for text, kind in kinds.items() if text in message]
    return kind


def expected_kind(run, changes):
    """Returns the outcome by the kinds of the changes alone."""
    effective = [one for one in changes if one not in NEUTRAL and not (one == CONSTANT and run.name == "constant")]
    if any(one in FIXED for one in effective):
        return "fixed"
    if "Trainer.num_steps = 3" in effective:
        return "short"
    is_longer = any(one in LENGTHS for one in effective)
    keeps_cosine = run.name == "cosine" and not any(one == CONSTANT or "Cosine" in one for one in effective)
    if is_longer and keeps_cosine:
        return "schedule"
    return "extend" if effective else "resume"


def typed(kind, message, changes):
    """Returns the bindings of the commands that a message advises."""
    if kind == "schedule":
        _, hold, _, rewarm = message.split("\n\n")
        return [[*changes, hold], [*changes, rewarm.strip()]]
    if kind == "short":
        least = re.search(r"(\d+) steps have been taken: Trainer.num_steps must be at least that", message)[1]
        return [[*changes, f"Trainer.num_steps = {least}"]]
    return [changes]


def assert_reported(lines, changes, base):
    """Every value that was changed is in the difference, and nothing else."""
    added = {line[2:] for line in lines if line.startswith("+ ")}
    assert {one for one in changes if one not in base and "=" in one} <= added, (changes, added)


@pytest.mark.slow
def test_drawn_changes_are_resumed_or_refused_with_advice_that_works(runs, decide, tmp_path):
    kinds = collections.Counter()
    for seed in range(NUM_PAIRS):
        run, base = random.Random(seed).choice(list(runs.items()))
        changes = [one for one in drawn(seed) if not (run.name == "constant" and "Cosine" in one)]
        kind = expected_kind(run, changes)
        kinds[kind] += 1
        if kind == "resume":
            found = decide(run, [*base, *changes])
            assert not found.is_extension
            assert_reported(found.neutral, changes, base)
            continue
        with pytest.raises(ml.UserError) as refused:
            decide(run, [*base, *changes])
        message = str(refused.value)
        assert kind_of(message) == kind, (seed, changes, message)
        shown = [line.strip() for line in message.splitlines() if line.startswith("  ")]
        assert_reported(shown, [one for one in changes if one not in NEUTRAL], base)
        if kind == "fixed":
            assert all(one.split(" = ")[0] in message for one in changes if one in FIXED)
            assert f"with init_from={run} init_step=4 and another run_dir" in message
            assert decide(tmp_path / "new", [*base, *changes]).saved is None
            continue
        for bindings in typed(kind, message, changes):
            again = decide(run, [*base, *bindings], extend=True)
            assert again.is_extension == bool(again.changed)
            assert again.segment == (4 if again.is_extension else 0)
            if kind != "short":
                assert_reported([*again.changed, *again.neutral], changes, base)
                assert "learning rate at step 4" in again.notice
    assert len(kinds) == 5
    assert min(kinds.values()) >= 5, kinds
