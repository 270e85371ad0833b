"""Random changes of a run: each is resumed with everything reported, or refused with advice that works when typed."""

import collections
import functools
import io
import random
import re
import shutil

import pytest
from small_run import SMALL

import ml
from ml.building import _trainer_on_meta, build_trainer
from ml.config import load
from ml.distributed import World
from ml.runs.init_flags import init_statements
from ml.runs.launch import Launch
from ml.runs.run import is_part_of_a_model

NUM_PAIRS = 100
OPERATIVE = "operative_config.gin"
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
    bindings = [*(binding for binding in SMALL if "dropout" not in binding), "decoder/Repeat.num_blocks = 1"]
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
def launch(monkeypatch, runs):
    """Prepares a start for real, up to where it would write; configurations are loaded once, without a rehearsal."""

    @functools.cache
    def loaded(file, bindings, flags=(), source=None):
        imported = () if source is None else models[source]
        options = {"root": _trainer_on_meta, "shipped": ml.SHIPPED_CONFIGS, "imported": imported}
        return load(file, list(bindings), flags=flags, **options)

    models = {run: loaded(str(run / OPERATIVE), ()).as_imported(is_part_of_a_model, "there") for run in runs}
    for module in ("continuation", "branches"):
        monkeypatch.setattr(f"ml.runs.{module}.load", lambda file, trust_code: loaded(str(file), ()))
    built = functools.cache(lambda operative, config: build_trainer(config))
    monkeypatch.setattr("ml.runs.changes.build_trainer", lambda config: built(config.operative, config))

    def launch(folder, bindings, *, extend=False, init_from=None, init_state=None, init_may_differ=()):
        step = None if init_from is None else 4
        flags = tuple(init_statements(init_from, step, init_state, list(init_may_differ)))
        config = loaded("recipes/tiny.gin", tuple(bindings), flags, init_from)
        return Launch(config, build_trainer(config), folder, World(), extend)

    return launch


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


def assert_refused(message, kind, changes, base):
    """A refusal shows the difference, without what changes no result, and names what cannot change."""
    assert kind_of(message) == kind, (changes, message)
    shown = [line.strip() for line in message.splitlines() if line.startswith("  ")]
    assert_reported(shown, [one for one in changes if one not in NEUTRAL], base)
    if kind == "fixed":
        assert all(one.split(" = ")[0] in message for one in changes if one in FIXED)


def extended_pair(launch, run, base, changes, kind, new, draw):
    """A command on the folder of a run; returns the starts that are resumed, extended or advised."""
    if kind == "resume":
        found = launch(run, [*base, *changes])
        assert not found.continuation.is_extension
        assert_reported(found.continuation.neutral, changes, base)
        return [found]
    with pytest.raises(ml.UserError) as refused:
        launch(run, [*base, *changes])
    message = str(refused.value)
    assert_refused(message, kind, changes, base)
    if kind == "fixed":
        assert f"with init_from={run} init_step=4 and another run_dir, and init_may_differ for weights" in message
        return [from_weights(launch, run, [*base, *changes], new)]
    again = launch(run, [*base, *draw.choice(typed(kind, message, changes))], extend=True)
    found = again.continuation
    assert found.is_extension == bool(found.changed)
    assert found.segment == (4 if found.is_extension else 0)
    if kind != "short":
        assert_reported([*found.changed, *found.neutral], changes, base)
        assert "learning rate at step 4" in found.notice
    if kind != "extend":
        return [again]
    assert f"or init_from={run} init_step=4 init_state=all and another run_dir for a branch" in message
    if draw.random() < 0.7:  # branches are drawn as often
        return [again]
    branch = launch(new, [*base, *changes], init_from=run, init_state="all")
    assert branch.branch.changed == found.changed
    return [again, branch]


def branched_pair(launch, run, base, changes, kind, new, draw):
    """A branch of a run with changes; returns the starts that are accepted or advised."""
    if kind in ("resume", "extend"):
        found = launch(new, [*base, *changes], init_from=run, init_state="all")
        assert_reported(found.branch.changed, [one for one in changes if one not in NEUTRAL], base)
        assert bool(found.branch.changed) == ("learning rate at step 4" in found.branch.notice) == (kind == "extend")
        return [found]
    with pytest.raises(ml.UserError) as refused:
        launch(new, [*base, *changes], init_from=run, init_state="all")
    message = str(refused.value)
    assert message.startswith("training cannot continue from step 4")
    assert_refused(message, kind, changes, base)
    if kind == "fixed":
        assert "the same command with init_state=weights, and init_may_differ for weights of other shapes" in message
        return [from_weights(launch, run, [*base, *changes], new, init_state="weights")]
    advised = draw.choice(typed(kind, message, changes))
    return [launch(new, [*base, *advised], init_from=run, init_state="all")]


def from_weights(launch, run, bindings, new, **options):
    """The start from weights alone; those of other shapes keep their initialization."""
    found = launch(new, bindings, init_from=run, init_may_differ=["*"], **options)
    assert found.continuation.saved is None
    assert found.start_lines[0].startswith("starting from the weights of step 4")
    return found


@pytest.mark.slow
def test_drawn_changes_are_resumed_or_refused_with_advice_that_works(runs, launch, tmp_path):
    kinds = collections.Counter()
    for seed in range(NUM_PAIRS):
        draw = random.Random(seed)
        run, base = draw.choice(list(runs.items()))
        changes = [one for one in drawn(seed) if not (run.name == "constant" and "Cosine" in one)]
        kind = expected_kind(run, changes)
        pair = draw.choice([extended_pair, branched_pair])
        starts = pair(launch, run, base, changes, kind, tmp_path / "new", draw)
        kinds[pair.__name__, kind] += 1
        if kinds[pair.__name__, kind] == 1:  # one of each is trained to its end
            for number, start in enumerate(starts):
                trains_to_its_end(start, run, tmp_path / f"{pair.__name__}_{kind}_{number}")
    assert len(kinds) == 10, kinds
    assert min(kinds.values()) >= 3, kinds


def trains_to_its_end(start, run, folder):
    """Trains in a copy of the run, or in a new folder."""
    if start.folder.path == run:
        shutil.copytree(run, folder)
    bindings, extend = start.config, start.continuation.is_extension
    made = ml.train(bindings, folder, extend=extend, device="cpu", stream=io.StringIO())
    last = start.trainer.stop_at_step or start.trainer.num_steps
    assert made.step == max(last, 4 if start.branch or start.continuation.saved else 0)
    assert made.config == start.config
