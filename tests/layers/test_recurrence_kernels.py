"""Recurrence kernels against the reference: those of libraries on a GPU, and what is passed to them on the CPU."""

import re
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from devices import CPU, CUDA, relative_error
from recurrence_cases import LIBRARIES, RULES, computed, starts_of_documents

import ml
from ml.api import build_trainer
from ml.config import ConfigError
from ml.errors import UserError
from ml.layers import (
    Cache,
    ChunkedRecurrence,
    Context,
    FlashLinearAttention,
    GatedDeltaNet,
    KimiDeltaAttention,
    LightningAttention,
    Mamba,
    Mamba2,
    MambaSSM,
    ReferenceRecurrence,
)
from ml.layers.recurrences import Rule, flash_linear_attention
from ml.layers.recurrences.library import LibraryKernel
from ml.models import materialize
from ml.training import RunError

H = 128
SIZES = {"num_heads": 2, "key_head_size": 64, "value_head_size": 32}
MIXERS = {
    "gated delta net": partial(GatedDeltaNet, **SIZES),
    "Kimi delta attention": partial(KimiDeltaAttention, **SIZES),
    "Mamba-2": partial(Mamba2, num_heads=2, head_size=32, state_size=64),
    "lightning attention": partial(LightningAttention, num_heads=2, head_size=64),
    "Mamba": partial(Mamba, state_size=8),
}
KERNELS = [FlashLinearAttention, MambaSSM]
PAIRS = {
    f"{kernel.__name__}, {name}": (kernel, *case)
    for kernel in KERNELS
    for name, case in RULES.items()
    if case[0] in kernel.rules
}


def starts_for(kernel, rule):
    return starts_of_documents() if kernel.separates_documents(rule) else None


@pytest.fixture
def libraries(monkeypatch):
    """Has the libraries by their documentation, which run on the CPU in float32."""
    monkeypatch.setattr(LibraryKernel, "obstacle", lambda *_: None)
    monkeypatch.setattr(LibraryKernel, "library", lambda self, rule: LIBRARIES[self.modules[rule]])


@pytest.mark.parametrize(("kernel", "rule", "case"), PAIRS.values(), ids=PAIRS)
def test_what_a_library_is_given_and_returns_is_the_rule(libraries, kernel, rule, case):
    inputs, starts = case(), starts_for(kernel(), rule)
    expected = computed(ReferenceRecurrence(), rule, inputs, starts)
    found = computed(kernel(), rule, [None if one is None else one.float() for one in inputs], starts)
    assert found[1].dtype == torch.float32
    for value, reference in zip(found, expected, strict=True):
        assert relative_error(value, reference) < 1e-4  # float32, and log decays next to one of -64


@pytest.mark.parametrize("mixer", MIXERS.values(), ids=MIXERS)
def test_a_layer_computes_the_same_with_the_reference(mixer):
    documents = (torch.arange(23) // 9).expand(2, -1)
    x = torch.randn(2, 23, H, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    layers = [materialize(mixer(H, kernel=kernel)).double() for kernel in (ChunkedRecurrence, ReferenceRecurrence)]
    found, expected = (layer(x, Context(documents=documents)) for layer in layers)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("mixer", MIXERS.values(), ids=MIXERS)
@torch.no_grad()
def test_a_layer_of_a_library_writes_text_on_the_cpu(mixer):
    kernel = MambaSSM if mixer.func is Mamba else FlashLinearAttention
    layer = materialize(mixer(H, kernel=kernel)).eval()
    x = torch.randn(2, 6, H, generator=torch.Generator().manual_seed(0))
    cache, outputs = Cache(), []
    for piece in x.split([4, 1, 1], dim=1):
        outputs.append(layer(piece, Context(cache=cache)))
        cache.advance(piece.shape[1], None)
    plain = materialize(mixer(H)).eval()
    torch.testing.assert_close(torch.cat(outputs, dim=1), plain(x, Context()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kernel", "device", "dtype", "message"),
    [
        (FlashLinearAttention, "cpu", torch.bfloat16, r"it needs a GPU and not cpu: train on one, or take @Chunked"),
        (FlashLinearAttention, "cuda", torch.float32, r"it needs bfloat16 or float16 and not torch\.float32"),
        (
            FlashLinearAttention,
            "cuda",
            torch.bfloat16,
            r"it needs the library fla\S*: pip install .juniper-trainer\[fla\]'",
        ),
        (MambaSSM, "cuda", torch.bfloat16, r"it needs the library mamba_ssm\S*: pip install .juniper-trainer\[mamba\]"),
    ],
)
def test_what_a_kernel_cannot_train_on_is_refused(monkeypatch, kernel, device, dtype, message):
    for module in ("fla", "mamba_ssm"):
        monkeypatch.setitem(sys.modules, module, None)  # not installed
    layer = Mamba2(H, kernel=kernel)
    assert re.match(rf"Mamba2\.kernel = @{kernel.__name__}: {message}", layer.obstacle_on(device, dtype))
    assert Mamba2(H).obstacle_on(device, dtype) is None


@pytest.mark.parametrize(
    ("version", "capability", "is_refused"),
    [("3.6.0", (9, 0), True), ("3.3.1", (9, 0), False), ("3.7.1+git1", (9, 0), False), ("3.6.0", (8, 0), False)],
)
def test_a_compiler_that_the_library_refuses_is_refused_before_training(monkeypatch, version, capability, is_refused):
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__=version))
    monkeypatch.setitem(sys.modules, "fla.ops", SimpleNamespace())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    obstacle = flash_linear_attention._obstacle_of_compiler
    obstacle.cache_clear()
    found = GatedDeltaNet(H, kernel=FlashLinearAttention).obstacle_on("cuda", torch.bfloat16)
    obstacle.cache_clear()
    assert (found is not None and "install Triton 3.7.1 or later" in found) == is_refused, found


def test_a_pass_with_a_gradient_is_refused_where_training_is():
    layer = materialize(GatedDeltaNet(H, **SIZES, kernel=FlashLinearAttention))
    with pytest.raises(ValueError, match="kernel = @FlashLinearAttention: it needs a GPU and not cpu"):
        layer(torch.zeros(1, 4, H), Context())


def configured(*bindings):
    mixer = ["DecoderBlock.mixer = @Mamba", "Mamba.state_size = 4"]
    return ml.load("recipes/tiny.gin", [*mixer, *bindings], allow_unused_bindings=True)


def test_the_binding_of_a_kernel_of_other_rules_is_named():
    with pytest.raises(ConfigError, match=r"Mamba\.kernel = @FlashLinearAttention does not compute the selective scan"):
        configured("Mamba.kernel = @FlashLinearAttention")


def test_a_run_is_refused_before_its_first_step():
    trainer = build_trainer(configured("Mamba.kernel = @MambaSSM"))
    with pytest.raises(RunError, match=r"Mamba\.kernel = @MambaSSM: it needs a GPU and not cpu"):
        trainer.check_machine(CPU)


def test_documents_are_refused_where_a_kernel_does_not_separate_them():
    with pytest.raises(UserError, match="does not separate documents"):
        build_trainer(configured("Mamba.kernel = @MambaSSM", "TextData.separate_documents = True"))


def test_the_size_of_a_chunk_is_that_of_the_plain_kernel_alone():
    mixer = ["include 'recipes/tiny.gin'", "DecoderBlock.mixer = @Mamba2", "Mamba2.head_size = 8"]
    for kernel in ("ChunkedRecurrence", "FlashLinearAttention", "MambaSSM", "ReferenceRecurrence"):
        bindings = ["\n".join([*mixer, f"Mamba2.kernel = @{kernel}", "Mamba2.chunk_size = 4"])]
        if kernel == "ChunkedRecurrence":
            ml.load(bindings=bindings)
        else:
            with pytest.raises(ConfigError, match=r"(?s)Mamba2\.chunk_size.*Mamba2\.kernel"):
                ml.load(bindings=bindings)


def test_a_gradient_that_a_library_ignores_is_an_error(libraries):
    inputs = [None if one is None else one.float().requires_grad_() for one in RULES["the selective scan"][1]()]
    _, state = MambaSSM().selective_scan(*inputs, None)
    with pytest.raises(ValueError, match="has no gradient of the last state"):
        state.sum().backward()


@pytest.fixture
def one_variant(monkeypatch):
    """Compiles one variant of each Triton kernel instead of timing many."""
    autotuner = pytest.importorskip("triton.runtime.autotuner").Autotuner
    prune = autotuner.prune_configs
    monkeypatch.setattr(autotuner, "prune_configs", lambda self, arguments: prune(self, arguments)[:1])


def installed(kernel, rule):
    if (problem := kernel().problem(rule, "cuda", torch.bfloat16)) is not None:
        pytest.skip(problem)


@pytest.mark.gpu
@pytest.mark.parametrize(("kernel", "rule", "case"), PAIRS.values(), ids=PAIRS)
def test_a_library_computes_the_reference_with_documents_and_a_state(one_variant, kernel, rule, case):
    installed(kernel, rule)
    inputs, starts = [None if one is None else one.bfloat16() for one in case()], starts_for(kernel(), rule)
    expected = computed(ReferenceRecurrence(), rule, [None if one is None else one.double() for one in inputs], starts)
    narrow = {"gated_delta_rule": (0, 1, 2), "state_space_duality": (0, 3, 4), "selective_scan": (0, 3, 4)}
    halves = narrow[rule.name.lower()]  # the others are float32
    on_gpu = [
        None if one is None else one.to(CUDA, torch.bfloat16 if index in halves else torch.float32)
        for index, one in enumerate(inputs)
    ]
    found = computed(kernel(), rule, on_gpu, None if starts is None else starts.to(CUDA))
    errors = [relative_error(value, reference) for value, reference in zip(found, expected, strict=True)]
    assert max(errors) < 2**-5, errors  # products in bfloat16, 2^-9, several one after another


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("mixer", MIXERS.values(), ids=MIXERS)
def test_a_layer_trains_with_a_library_as_with_the_plain_kernel(one_variant, mixer, kernel):
    rule = mixer.func.rule
    if rule not in kernel.rules:
        pytest.skip(f"does not compute {rule.value}")
    installed(kernel, rule)
    results = []
    x = torch.randn(2, 200, H, generator=torch.Generator().manual_seed(0)).to(CUDA)
    for kind in (ChunkedRecurrence, kernel):
        layer, given = materialize(mixer(H, kernel=kind), CUDA), x.clone().requires_grad_()
        with torch.autocast("cuda", torch.bfloat16):
            output = layer(given, Context())
        (output.float() * x).sum().backward()
        results.append({"output": output, "x": given.grad, **{n: p.grad for n, p in layer.named_parameters()}})
    least = results[0]["x"].square().mean().sqrt().item()
    errors = {name: relative_error(value, results[0][name], least) for name, value in results[1].items()}
    assert max(errors.values()) < 0.1, errors


@pytest.mark.gpu
def test_a_library_trains_in_a_compiled_layer(one_variant):
    installed(FlashLinearAttention, Rule.GATED_DELTA_RULE)
    torch._dynamo.reset()
    layer = materialize(GatedDeltaNet(H, **SIZES, kernel=FlashLinearAttention), CUDA)
    x = torch.randn(2, 200, H, generator=torch.Generator().manual_seed(0)).to(CUDA)
    gradients = []
    for forward in (layer.forward, torch.compile(layer.forward)):
        layer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            output = forward(x, Context())
        (output.float() * x).sum().backward()
        gradients.append({name: weight.grad.clone() for name, weight in layer.named_parameters()})
    least = gradients[0]["query.weight"].square().mean().sqrt().item()
    errors = {name: relative_error(found, gradients[0][name], least) for name, found in gradients[1].items()}
    assert max(errors.values()) < 2**-5, errors  # fused operations round to bfloat16 less often


def test_every_rule_has_a_case():
    assert {rule for rule, _ in RULES.values()} == set(Rule)
    assert {mixer.func.rule for mixer in MIXERS.values()} == set(Rule)
