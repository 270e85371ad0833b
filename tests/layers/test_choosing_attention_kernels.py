"""Refusals of attention kernels, the automatic choice, and the memory that they take."""

import re
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch
from devices import relative_error
from torch._dynamo.testing import CompileCounter
from torch.nn.attention import flex_attention as library
from torch.utils._python_dispatch import TorchDispatchMode

import ml
from ml.api import build_trainer
from ml.config import ConfigError
from ml.distributed.compiled_block import CompiledBlock
from ml.layers import (
    Attention,
    AutomaticAttention,
    BlockwiseAttention,
    Context,
    DotProductAttention,
    FlexAttention,
    LatentAttention,
    ReferenceAttention,
    VariableLengthAttention,
)
from ml.layers.attention_kernels import (
    AttentionTask,
    Features,
    Weighting,
    blockwise_operator,
    dot_product,
    flex,
    task_of,
)
from ml.models import materialize
from ml.training import RunError
from ml.training.summary import describe_kernels

TASK = AttentionTask(64, 64, is_grouped=True, num_queries=2048, num_keys=2048, has_documents=False)
GPU = {"device": "cuda", "dtype": torch.bfloat16, "needs_gradient": True}
CPU = {"device": "cpu", "dtype": torch.float32, "needs_gradient": True}
ON_GPU = [
    ({}, DotProductAttention),
    ({"causal": False}, DotProductAttention),
    ({"dropout": 0.1}, DotProductAttention),
    ({"window_size": 2048}, DotProductAttention),
    ({"window_size": 64}, FlexAttention),
    ({"has_documents": True}, FlexAttention),
    ({"soft_cap": 30.0}, FlexAttention),
    ({"has_sinks": True}, FlexAttention),
    ({"num_queries": 1024}, FlexAttention),
    ({"num_queries": 1024, "needs_gradient": False}, BlockwiseAttention),
    ({"num_queries": 1, "has_documents": True, "needs_gradient": False}, DotProductAttention),
    ({"dtype": torch.float32}, FlexAttention),
    ({"dtype": torch.float32, "is_grouped": False}, DotProductAttention),
    ({"head_size": 192, "value_head_size": 128}, FlexAttention),
    ({"head_size": 192, "value_head_size": 128, "is_grouped": False}, DotProductAttention),
    ({"head_size": 8, "value_head_size": 8, "window_size": 64}, BlockwiseAttention),
    ({"head_size": 576, "value_head_size": 512, "has_documents": True}, BlockwiseAttention),
    ({"dropout": 0.1, "has_documents": True}, BlockwiseAttention),
    ({"dropout": 0.1, "soft_cap": 30.0}, BlockwiseAttention),
]
ON_CPU = [
    ({}, DotProductAttention),
    ({"dtype": torch.bfloat16}, DotProductAttention),
    ({"num_queries": 1}, DotProductAttention),
    ({"num_queries": 1, "window_size": 64}, DotProductAttention),
    ({"window_size": 64}, BlockwiseAttention),
    ({"window_size": 1024}, BlockwiseAttention),
    ({"window_size": 64, "num_queries": 512, "num_keys": 512}, BlockwiseAttention),
    ({"window_size": 128, "num_queries": 512, "num_keys": 512}, DotProductAttention),
    ({"window_size": 512, "num_queries": 1024, "num_keys": 1024}, BlockwiseAttention),
    ({"has_documents": True}, BlockwiseAttention),
    ({"has_documents": True, "num_queries": 512, "num_keys": 512}, BlockwiseAttention),
    ({"has_documents": True, "num_queries": 256, "num_keys": 256}, DotProductAttention),
    ({"soft_cap": 30.0}, BlockwiseAttention),
    ({"has_sinks": True}, BlockwiseAttention),
    ({"value_head_size": 48}, BlockwiseAttention),
    ({"value_head_size": 48, "is_grouped": False}, BlockwiseAttention),
    ({"dropout": 0.1}, BlockwiseAttention),
    ({"dropout": 0.1, "is_grouped": False}, DotProductAttention),
]


@pytest.fixture
def triton(monkeypatch):
    monkeypatch.setattr(flex, "has_triton", lambda: True)


@pytest.mark.parametrize(("changes", "kernel"), ON_GPU, ids=str)
def test_the_kernel_of_a_gpu(triton, changes, kernel):
    assert type(AutomaticAttention().chosen(TASK._replace(**{**GPU, **changes}))) is kernel


@pytest.mark.parametrize(("changes", "kernel"), ON_CPU, ids=str)
def test_the_kernel_of_a_cpu(changes, kernel):
    assert type(AutomaticAttention().chosen(TASK._replace(**{**CPU, **changes}))) is kernel


def test_blocks_replace_flex_attention_where_triton_is_missing(monkeypatch):
    monkeypatch.setattr(flex, "has_triton", lambda: False)
    task = TASK._replace(**GPU, window_size=64)
    assert type(AutomaticAttention().chosen(task)) is BlockwiseAttention
    assert "Triton" in FlexAttention().obstacle(task)


@pytest.mark.parametrize(
    ("kernel", "options", "message"),
    [
        (FlexAttention, {"dropout": 0.1}, "@FlexAttention does not support dropout of the weights"),
        (FlexAttention, {"head_size": 8}, "does not support heads of 8"),
        (DotProductAttention, {"soft_cap": 3.0}, r"does not support a soft cap \(soft_cap\): take @AutomaticAttention"),
        (DotProductAttention, {"attention_sinks": True}, r"does not support sinks \(attention_sinks\)"),
        (VariableLengthAttention, {"soft_cap": 3.0}, "does not support a soft cap"),
        (VariableLengthAttention, {"dropout": 0.1}, "does not support dropout"),
    ],
)
def test_a_kernel_that_lacks_an_option_is_refused_when_the_layer_is_built(kernel, options, message):
    with pytest.raises(ValueError, match="kernel = .*" + message):
        Attention(64, num_heads=4, kernel=kernel, **{"head_size": 16, **options})


def test_the_binding_of_a_kernel_that_lacks_an_option_is_named():
    bindings = ["include 'recipes/tiny.gin'", "Attention.kernel = @DotProductAttention", "Attention.soft_cap = 3.0"]
    with pytest.raises(ConfigError, match=r"Attention\.kernel = @DotProductAttention does not support a soft cap"):
        ml.build(ml.load(bindings=bindings), device="meta")


@pytest.mark.parametrize("kernel", ["FlexAttention", "VariableLengthAttention"])
def test_a_kernel_of_a_gpu_is_configured_anywhere_and_refused_on_a_cpu_before_the_first_step(kernel):
    trainer = build_trainer(ml.load("recipes/tiny.gin", bindings=[f"block_1/Attention.kernel = @{kernel}"]))
    path = f"decoder.block_1.mixer: Attention.kernel = @{kernel} does not support"
    with pytest.raises(RunError, match=path):
        trainer.check_machine(torch.device("cpu"))
    assert f"{kernel}" not in describe_kernels(build_trainer(ml.load("recipes/tiny.gin")), "cuda")
    assert describe_kernels(trainer, "cuda").startswith("attention on cuda  ")
    assert f"{kernel}: 1 layer" in describe_kernels(trainer, "cuda")


def test_the_kernels_of_a_run_are_described_with_what_decides_them():
    bindings = ["block_0/Attention.window_size = 64", "TextData.separate_documents = True"]
    trainer = build_trainer(ml.load("recipes/tiny.gin", bindings=[*bindings, "Trainer.sequence_length = 1024"]))
    expected = "attention on cpu  BlockwiseAttention (documents, window 64): 1 layer, BlockwiseAttention (documents): 1"
    assert describe_kernels(trainer, "cpu").startswith(expected)


@pytest.mark.parametrize(
    ("kernel", "weighting", "message"),
    [
        (FlexAttention(), Weighting(), "training on a CPU"),
        (VariableLengthAttention(), Weighting(), r"cpu \(a GPU only\)"),
        (DotProductAttention(), Weighting(soft_cap=2.0), "a soft cap"),
    ],
)
def test_a_kernel_that_lacks_something_in_a_pass_is_refused(kernel, weighting, message):
    heads = [torch.zeros(1, 2, 8, 16, requires_grad=True) for _ in range(3)]
    with pytest.raises(ValueError, match=message):
        kernel(*heads, weighting, Context())


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_blocks_support_everything_and_so_there_is_always_a_kernel(triton, device):
    for window, documents, cap, sinks, dropout, causal, queries, value_size, grouped in product(
        (None, 9), *[(False, True)] * 2, (False, True), (0.0, 0.1), (False, True), (1, 9, 20), (64, 32), (False, True)
    ):
        task = AttentionTask(
            64, value_size, grouped, causal, window, 2.0 if cap else None, sinks, dropout, documents, queries, 20,
            device, torch.bfloat16, True,
        )  # fmt: skip
        assert BlockwiseAttention().obstacle(task) is None
        assert AutomaticAttention().chosen(task).obstacle(task) is None


def test_the_table_of_the_guide_is_what_kernels_declare(triton):
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    header, _, *rows = re.search(r"^\| supports \|.*?\n\n", page, re.M | re.S).group().strip().splitlines()
    names = re.findall(r"`(\w+)`", header)
    assert len(rows) == len(Features._fields)
    columns = zip(*([cell.strip() for cell in row.strip("|").split("|")][1:] for row in rows), strict=True)
    for name, cells in zip(names, columns, strict=True):
        kernel = getattr(ml.layers, name)()
        on_gpu = [kernel.obstacle(TASK._replace(**GPU, **changes)) is None for changes in EACH_FEATURE]
        for cell, supported, runs in zip(cells, kernel.supports, on_gpu, strict=True):
            assert (cell != "no") == supported
            assert (cell == "CPU") == (supported and not runs)


EACH_FEATURE = [
    {"window_size": 9}, {"has_documents": True}, {"soft_cap": 1.0}, {"has_sinks": True}, {"dropout": 0.1},
    {"causal": False}, {"num_queries": 1024}, {"value_head_size": 32, "is_grouped": False},
]  # fmt: skip


class Stored(TorchDispatchMode):
    """Records the results of operations that are no views, and copies of expanded tensors."""

    def __init__(self):
        super().__init__()
        self.largest = 0
        self.expanded: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        own = {"juniper::blockwise_attention": "_attend", "juniper::blockwise_attention_backward": "_attend_backward"}
        if (name := own.get(function._schema.name)) is not None:
            with self:
                return getattr(blockwise_operator, name)._init_fn(*args)
        result = function(*args, **(kwargs or {}))
        inputs = [x for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        is_copy = function._schema.name in ("aten::clone", "aten::copy_", "aten::_to_copy", "aten::repeat_interleave")
        if is_copy and any(x.dim() > 2 and is_expanded(x) for x in inputs):
            self.expanded.append(str(function))
        if not function.is_view:
            outputs = [x for x in torch.utils._pytree.tree_leaves(result) if isinstance(x, torch.Tensor)]
            self.largest = max([self.largest, *(x.untyped_storage().nbytes() // x.element_size() for x in outputs)])
        return result


def is_expanded(x: torch.Tensor) -> bool:
    return any(stride == 0 and size > 1 for stride, size in zip(x.stride(), x.shape, strict=True))


def stored(kernel, weighting, num_queries=200, backward=True) -> Stored:
    """Forward and backward of 8 heads that share 2 keys."""
    heads = [
        torch.randn(2, n, length, 16, requires_grad=backward) for n, length in ((8, num_queries), (2, 200), (2, 200))
    ]
    with Stored() as mode:
        output = kernel(*heads, weighting, Context(documents=weighting.documents))
        if backward:
            torch.autograd.grad(output, heads, torch.ones_like(output))
    return mode


DOCUMENTS = (torch.arange(200) // 37).expand(2, -1)


@pytest.mark.parametrize("kernel", [DotProductAttention(), BlockwiseAttention(), AutomaticAttention()])
@pytest.mark.parametrize("weighting", [Weighting(), Weighting(window_size=30), Weighting(documents=DOCUMENTS)])
def test_groups_of_heads_do_not_repeat_their_keys(kernel, weighting):
    assert not stored(kernel, weighting).expanded
    assert not stored(kernel, weighting, num_queries=1, backward=False).expanded
    assert stored(ReferenceAttention(), weighting).expanded  # which repeats them


def test_dropout_of_grouped_heads_does_not_repeat_their_keys():
    assert not stored(AutomaticAttention(), Weighting(dropout=0.1)).expanded


UNMASKED, IN_DOCUMENTS = {}, {"documents": True}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (UNMASKED, DotProductAttention),
        ({"dropout": 0.1}, DotProductAttention),
        ({"window_size": 64}, FlexAttention),
        (IN_DOCUMENTS, FlexAttention),
        ({"soft_cap": 3.0}, FlexAttention),
        ({"dropout": 0.1, **IN_DOCUMENTS}, BlockwiseAttention),
    ],
    ids=str,
)
def test_nothing_of_the_size_of_the_scores_is_stored_on_a_gpu(triton, options, expected):
    """The kernels of torch store their results; what Juniper makes for them is recorded, on tensors without values."""
    length = 4096
    heads = [torch.empty(1, n, length, 16, device="meta", dtype=torch.bfloat16) for n in (2, 1, 1)]
    documents = torch.zeros(1, length, dtype=torch.int64, device="meta") if "documents" in options else None
    weighting = Weighting(**{**options, "documents": documents})
    task = task_of(*heads, weighting)._replace(needs_gradient=True)
    kernel = AutomaticAttention().chosen(task._replace(device="cuda"))
    assert type(kernel) is expected
    with Stored() as mode:
        if expected is DotProductAttention:
            assert not dot_product.needs_mask(task)
        elif expected is FlexAttention:
            kernel.prepare(task, Context(documents=documents))
        else:
            kernel(*heads, weighting, Context())
    assert mode.largest <= 128 * 2 * length  # the scores of one block of queries


@pytest.fixture
def made(monkeypatch, triton):
    """Takes FlexAttention in torch's plain form for the kernel of every layer, and records the masks that are made."""
    monkeypatch.setattr(library, "_validate_device", lambda *_: None)
    monkeypatch.setattr(library, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(flex, "_function", lambda *_: library.flex_attention)
    monkeypatch.setattr(FlexAttention, "obstacle", lambda *_: None)
    masks = []
    original = flex.block_mask
    monkeypatch.setattr(flex, "block_mask", lambda *args: masks.append(args) or original(*args))
    return masks


MODEL = """
LanguageModel.vocab_size = 256
LanguageModel.hidden_size = 32
LanguageModel.decoder = @Pattern
Pattern.blocks = {'local': @DecoderBlock, 'whole': @DecoderBlock}
Pattern.pattern = ['local', 'whole']
Pattern.num_blocks = 4
local/Attention.window_size = 9
Attention.num_heads = 2
Attention.kernel = @FlexAttention
"""


@pytest.mark.parametrize(
    "policy", ["None", "@ActivationCheckpointing", "@SelectiveActivationCheckpointing"], ids=lambda text: text
)
def test_masks_are_made_once_a_pass_for_all_layers(made, policy):
    bindings = [MODEL, f"DecoderBlock.activation_checkpointing = {policy}"]
    model = ml.build(ml.load(bindings=bindings), device="cpu")
    made.clear()
    for _ in range(2):
        model.loss(TOKENS, TOKENS, documents=DOCUMENTS_OF_TOKENS).total.backward()
    assert [args[3] for args in made] == [9, None] * 2
    blocks = ml.build(ml.load(bindings=[*bindings, "Attention.kernel = @BlockwiseAttention"]), device="cpu")
    blocks.load_state_dict(model.state_dict())
    for _ in range(2):
        blocks.loss(TOKENS, TOKENS, documents=DOCUMENTS_OF_TOKENS).total.backward()
    for mine, other in zip(model.parameters(), blocks.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-4)


def test_compiled_blocks_take_the_mask_of_the_pass_without_compiling_again(made):
    """`fullgraph`: nothing of the kernels, the masks or the context breaks the graph."""
    model = ml.build(ml.load(bindings=[MODEL]), device="cpu")
    expected = model(TOKENS, documents=DOCUMENTS_OF_TOKENS)
    torch._dynamo.reset()
    counter = CompileCounter()
    for block in model.decoder.blocks:
        compiled = CompiledBlock(block, block.forward)
        compiled._forward = torch.compile(block.forward, backend=counter, fullgraph=True)
        vars(block)["forward"] = compiled
    made.clear()
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS, documents=DOCUMENTS_OF_TOKENS), expected, rtol=1e-4, atol=1e-5)
        first = counter.frame_count
        for shift in (1, 2):
            model(TOKENS, documents=DOCUMENTS_OF_TOKENS.roll(shift, 1))
    assert counter.frame_count == first
    assert len(made) == 2 * 3


@pytest.mark.parametrize("options", [{}, {"window_size": 5}, {"soft_cap": 3.0}, {"causal": False}], ids=str)
def test_kernels_compile_for_sequences_of_any_length(options):
    torch._dynamo.reset()
    layer = materialize(Attention(32, num_heads=4, num_kv_heads=2, **options)).eval()
    compiled = torch.compile(layer.forward, backend="eager", fullgraph=True, dynamic=True)
    for length in (12, 13, 200):
        x = torch.randn(2, length, 32)
        torch.testing.assert_close(compiled(x, Context()), layer(x, Context()))


TOKENS = torch.arange(40).view(2, 20)
DOCUMENTS_OF_TOKENS = (torch.arange(20) // 7).repeat(2, 1)


@pytest.mark.slow
def test_compiled_flex_attention_equals_the_reference_on_the_cpu():
    for length, shift in ((150, 0), (150, 5), (200, 3)):
        heads = [torch.randn(2, n, length, 16) for n in (4, 2, 2)]
        documents = ((torch.arange(length) + shift) // 37).expand(2, -1)
        weighting = Weighting(window_size=60, soft_cap=2.0, documents=documents)
        output = FlexAttention()(*heads, weighting, Context(documents=documents))
        expected = ReferenceAttention()(*heads, weighting, Context())
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


def test_masks_of_flex_attention_that_are_more_than_the_limit_of_variants_are_all_compiled(monkeypatch):
    counter, limit = CompileCounter(), torch._dynamo.config.recompile_limit
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    flex._compiled.cache_clear()
    heads = [torch.randn(1, n, 40, 16) for n in (4, 2, 2)]
    windows = range(2, 4 + limit)
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for window_size in (*windows, *windows):
            weighting = Weighting(window_size=window_size)
            output = FlexAttention()(*heads, weighting, Context())
            expected = ReferenceAttention()(*heads, weighting, Context())
            torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    flex._compiled.cache_clear()
    assert counter.frame_count == len(windows) > limit


def test_latent_attention_takes_kernels_too():
    options = {"num_heads": 2, "key_value_rank": 8, "head_size": 16, "rotary_size": 16, "value_head_size": 16}
    x = torch.randn(2, 12, 32, dtype=torch.float64)
    outputs = []
    for kernel in (AutomaticAttention, BlockwiseAttention, ReferenceAttention):
        torch.manual_seed(0)
        layer = materialize(LatentAttention(32, kernel=kernel, window_size=5, **options)).double()
        outputs.append(layer(x, Context()))
    torch.testing.assert_close(outputs[0], outputs[2])
    torch.testing.assert_close(outputs[1], outputs[2])
    with pytest.raises(ValueError, match="kernel = @VariableLengthAttention does not support value heads"):
        LatentAttention(32, kernel=VariableLengthAttention, **{**options, "value_head_size": 24})


ALL = {"window_size": 100, "documents": True, "soft_cap": 5.0, "sinks": True}
TASKS_OF_A_GPU = {
    "causal": {},
    "window": {"window_size": 100},
    "documents": {"documents": True},
    "window to both sides": {"window_size": 100, "causal": False},
    "all": ALL,
    "more keys than queries": {**ALL, "num_queries": 200},
    "value heads of another size": {"window_size": 100, "value_size": 32},
    "all in float32": {**ALL, "dtype": torch.float32},
}


@pytest.mark.gpu
@pytest.mark.parametrize("options", TASKS_OF_A_GPU.values(), ids=TASKS_OF_A_GPU)
@pytest.mark.parametrize("kernel", [DotProductAttention, FlexAttention, VariableLengthAttention, BlockwiseAttention])
def test_kernels_of_a_gpu_equal_the_reference_and_its_gradients(kernel, options):
    torch._dynamo.reset()  # which compiles a function eight times at most
    torch.manual_seed(0)
    kernel = kernel()
    dtype = options.get("dtype", torch.bfloat16)
    sizes = [(8, options.get("num_queries", 700), 64), (2, 700, 64), (2, 700, options.get("value_size", 64))]
    heads = [torch.randn(2, *size, device="cuda", dtype=dtype, requires_grad=True) for size in sizes]
    documents = (torch.arange(700, device="cuda") // 150).expand(2, -1) if "documents" in options else None
    sinks = torch.randn(8, device="cuda", requires_grad=True) if "sinks" in options else None
    weighting = Weighting(
        options.get("causal", True),
        options.get("window_size"),
        soft_cap=options.get("soft_cap"),
        sinks=sinks,
        documents=documents,
    )
    if (obstacle := kernel.obstacle(task_of(*heads, weighting))) is not None:
        pytest.skip(f"does not support {obstacle}")
    inputs = [*heads, *([] if sinks is None else [sinks])]
    output = kernel(*heads, weighting, Context(documents=documents))
    gradient = torch.randn_like(output)
    actual = [output, *torch.autograd.grad(output, inputs, gradient)]
    wide = [x.detach().double().requires_grad_() for x in inputs]
    weighting = weighting._replace(sinks=None if sinks is None else wide[3])
    output = ReferenceAttention()(*wide[:3], weighting, Context())
    expected = [output, *torch.autograd.grad(output, wide, gradient.double())]
    # bfloat16 rounds to 2^-9. Kernels in float32 may multiply in TF32, which rounds to 2^-11.
    limit = 3 * 2**-8 if dtype == torch.bfloat16 else 2**-9
    for value, reference in zip(actual, expected, strict=True):
        assert relative_error(value, reference) < limit


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{"window_size": 256}, {"documents": True}, {}], ids=str)
def test_memory_on_a_gpu_grows_with_the_length_and_not_with_its_square(options):
    torch._dynamo.reset()  # which compiles a function eight times at most

    def peak(length: int) -> int:
        heads = [
            torch.randn(1, n, length, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for n in (8, 2, 2)
        ]
        documents = (torch.arange(length, device="cuda") // 500)[None] if "documents" in options else None
        weighting = Weighting(**{**options, "documents": documents})
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        AutomaticAttention()(*heads, weighting, Context(documents=documents)).sum().backward()
        return torch.cuda.max_memory_allocated() - before

    peak(4096), peak(16384)  # compile, and choose the fastest variant with separate buffers
    assert peak(16384) < 5 * peak(4096)
