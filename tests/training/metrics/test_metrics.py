"""Metrics of a run: speed, utilization, waiting, memory, norms."""

import io
import json
import math
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from saved import trained_model

import ml
from ml.data import Batch
from ml.distributed import World
from ml.distributed.norms import local_squares, replicas
from ml.training.metrics.norms import module_of
from ml.training.metrics.progress import TerminalProgress, describe
from ml.training.metrics.throughput import Throughput, peak_memory

CPU = torch.device("cpu")


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def batch_of(rows, length, masked):
    """A batch in which the first `masked` targets of each row do not count."""
    targets = np.ones((rows, length), dtype=np.int64)
    targets[:, :masked] = -100
    return Batch.of(np.ones((rows, length), dtype=np.int64), targets)


def test_utilization_counts_every_token_that_passes_and_speed_those_that_count():
    clock = Clock()
    throughput = Throughput(flops_per_token=6e6, peak_flops=1e12, device=CPU, clock=clock)
    for _ in range(5):
        throughput.count(2 * 70 + 3 * 100, 5 * 100)
        clock.now += 0.4
    measured = throughput.read()
    assert measured["tokens_per_second"] == pytest.approx(5 * (2 * 70 + 3 * 100) / 2.0)
    assert measured["mfu"] == pytest.approx(5 * 500 * 6e6 / 2.0 / 1e12)


def test_waiting_is_the_part_of_the_time_that_the_next_batch_took():
    clock = Clock()
    throughput = Throughput(1.0, 1.0, CPU, clock)

    def slow_batches():
        for seconds in (1.0, 0.0, 0.5):
            clock.now += seconds
            yield [batch_of(1, 4, 0)]

    for batches in throughput.waiting(slow_batches()):
        throughput.count(batches[0].num_targets, batches[0].tokens.numel())
        clock.now += 2.0
    assert throughput.read()["data_wait"] == pytest.approx(1.5 / 7.5)
    clock.now += 3.0
    assert throughput.read()["data_wait"] == 0.0


def test_time_before_a_restart_is_excluded():
    clock = Clock()
    throughput = Throughput(1.0, 1.0, CPU, clock)
    throughput.count(50, 50)
    clock.now += 1000.0
    throughput.restart()
    throughput.count(50, 50)
    clock.now += 2.0
    assert throughput.read()["tokens_per_second"] == pytest.approx(25.0)


def test_leaving_the_batches_early_ends_what_makes_them():
    ended = []

    def batches():
        try:
            while True:
                yield []
        finally:
            ended.append(True)

    source = batches()  # which lives on, as it would with an exception that holds the frame
    for _ in Throughput(1.0, 1.0, CPU).waiting(source):
        break
    assert ended == [True]


def test_memory_is_the_peak_that_the_kernel_knows():
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("only Linux says it here")
    before = peak_memory(CPU)
    kernel = 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1])
    assert before == pytest.approx(kernel, rel=0.02)  # the kernel adds up its counters of pages now and then


def test_a_slow_loader_shows_as_waiting(tiny, run_in, monkeypatch):
    trainer = tiny("Trainer.validation = None", "Trainer.log_every = 6", "Checkpoints.every = None")
    batches = trainer.batches

    def slow(dataset, step, *part, consumed):
        time.sleep(0.2)
        return batches(dataset, step, *part, consumed=consumed)

    folder, _, _ = run_in(trainer, "fast")
    fast = folder.metrics()[-1]["data_wait"]
    trainer = tiny("Trainer.validation = None", "Trainer.log_every = 6", "Checkpoints.every = None")
    vars(trainer)["batches"] = slow
    folder, _, _ = run_in(trainer, "slow")
    assert fast < folder.metrics()[-1]["data_wait"] < 1.0


def test_every_logged_step_has_the_metrics_of_the_machine(tiny, run_in):
    """Against a count of the multiplications of the model of the tests, by hand."""
    folder, _, _ = run_in(tiny("Trainer.peak_flops = 1e9"))
    hidden, intermediate, vocabulary, length, blocks = 16, None, 256, 16, 2
    sizes = {record["step"]: record for record in folder.metrics()}
    assert all({"mfu", "data_wait", "memory", "tokens_per_second"} <= set(record) for record in sizes.values())
    trainer = tiny()
    intermediate = trainer.model.decoder.block_0.mlp.up.out_features
    matrices = blocks * (4 * hidden * hidden + 3 * hidden * intermediate) + hidden * vocabulary
    # Two multiply-adds of a score and of the mix, three times over, for each of the (T + 1) / 2 tokens that one sees.
    attention = blocks * 3 * 2 * 2 * hidden * (length + 1) / 2
    for record in sizes.values():
        # Every token of this text counts, so that the tokens which pass are the targets.
        assert record["mfu"] == pytest.approx((6 * matrices + attention) * record["tokens_per_second"] / 1e9)
        assert record["memory"] > 0
        assert 0.0 <= record["data_wait"] <= 1.0


def test_the_environment_records_the_peak_and_its_source(tiny_bindings, tmp_path):
    for name, binding, source in (("a", [], "measured"), ("b", ["Trainer.peak_flops = 2e12"], "Trainer.peak_flops")):
        config = ml.load(
            bindings=[*tiny_bindings, "Trainer.num_steps = 3", "CosineSchedule.warmup_steps = 1", *binding]
        )
        ml.train(config, tmp_path / name)
        found = json.loads((tmp_path / name / "environment.json").read_text())
        assert found["data"]["sha256"]
        assert found["peak_flops"]["source"].startswith(source)
        assert found["peak_flops"]["compute_type"] == "float32"
        if binding:
            assert found["peak_flops"]["flops_per_second"] == 2e12
        else:  # what was measured is a fact, and no part of the configuration
            assert "Trainer.peak_flops = None" in (tmp_path / name / "operative_config.gin").read_text()


def flat_norm(tensors):
    return math.sqrt(sum(tensor.detach().double().square().sum().item() for tensor in tensors))


@pytest.mark.parametrize("max_grad_norm", [None, 0.01])
def test_norms_are_those_of_all_gradients_and_weights_of_a_place(tiny, run_in, max_grad_norm):
    bindings = [
        "DecoderBlock.dropout = 0.0",
        f"Trainer.max_grad_norm = {max_grad_norm}",
        "Trainer.micro_batch_size = 4",
    ]
    bindings += ["Trainer.num_steps = 1", "CosineSchedule.warmup_steps = 0", "block_1/DecoderBlock.lr_scale = 0.5"]
    folder, _, _ = run_in(trained := tiny(*bindings, "Trainer.norms = @Norms"))
    (record,) = folder.metrics()
    model = trained_model(trained, folder)
    oracle = tiny(*bindings)
    state = oracle.start(CPU)
    (batch,) = oracle.batches(oracle.open_data().training, 1)
    (state.model.loss(**batch.inputs).total / batch.num_targets).backward()
    gradients = {name: parameter.grad for name, parameter in state.model.named_parameters()}
    for place in ("embeddings", "decoder.block_0", "decoder.block_1", "head"):
        expected = flat_norm(g for name, g in gradients.items() if name.startswith(f"{place}."))
        assert record["grad_norms"][place] == pytest.approx(expected, rel=1e-5)
        weights = [p for name, p in model.named_parameters() if name.startswith(f"{place}.")]
        assert record["weight_norms"][place] == pytest.approx(flat_norm(weights), rel=1e-5)
    assert len(state.groups) > 2
    for index, group in enumerate(state.groups):
        expected = flat_norm(gradients[name] for name in group.names)
        assert record["group_grad_norms"][str(index)] == pytest.approx(expected, rel=1e-5)
    assert math.hypot(*record["grad_norms"].values()) == pytest.approx(record["grad_norm"], rel=1e-5)


def test_frozen_places_and_disabled_norms_are_omitted(tiny, run_in):
    folder, _, _ = run_in(
        tiny("Trainer.norms = @Norms", "block_0/DecoderBlock.lr_scale = 0.0", "Norms.weights = False")
    )
    for record in folder.metrics():
        assert "weight_norms" not in record
        assert set(record["grad_norms"]) == {"embeddings", "decoder.block_1", "head"}
    plain, _, _ = run_in(tiny(), "plain")
    assert not {"grad_norms", "weight_norms", "group_grad_norms"} & set(plain.metrics()[0])


def test_norms_change_nothing_in_what_is_learned(tiny, run_in):
    losses = [
        [record["loss"] for record in run_in(tiny(*bindings), name)[0].metrics()]
        for name, bindings in (("with", ["Trainer.norms = @Norms"]), ("without", []))
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("parameter", "place"),
    [
        ("embeddings.token.weight", "embeddings"),
        ("decoder.block_3.mixer.query.weight", "decoder.block_3"),
        ("decoder.ssm.block_11.mlp.up.weight", "decoder.ssm.block_11"),
        ("decoder.rest.block_0.block_1.mlp.up.weight", "decoder.rest.block_0"),
        ("head.norm.weight", "head"),
        ("multi_token.depth_0.block.mlp.up.weight", "multi_token"),
    ],
)
def test_a_place_is_a_block_or_a_part_of_the_model(parameter, place):
    assert module_of(parameter) == place


def test_weights_in_bfloat16_have_norms_in_float32():
    parameters = {"weight": torch.nn.Parameter(torch.full((5000,), 3.0, dtype=torch.bfloat16))}
    squares = local_squares(parameters, replicas(parameters, World()))
    assert squares.sqrt().item() == pytest.approx(3.0 * math.sqrt(5000), rel=1e-6)


def test_the_progress_shows_utilization_where_there_is_room():
    record = {"step": 1, "loss": 1.0, "learning_rate": 1e-3, "tokens_per_second": 1234.0, "mfu": 0.4321}
    assert describe(record)["mfu"] == "43.2% MFU"
    progress = TerminalProgress(io.StringIO(), 10)
    progress.report(record)
    assert "43.2% MFU" in progress.line(79)
    narrow = progress.line(45)
    assert "MFU" not in narrow
    assert "1,234 tokens/s" in narrow
