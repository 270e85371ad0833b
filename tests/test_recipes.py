"""Shipped configurations load, build, and have the golden operative config.

To accept a change: JUNIPER_UPDATE_GOLDEN=1 python -m pytest tests/test_recipes.py
"""

import io
import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from recipe_facts import computed, stated

import ml
from ml.api import build_trainer
from ml.data import ByteTokenizer, TokenFiles
from ml.data.token_files.writing import TokenWriter
from ml.data.tokenizers.training import train_byte_pairs
from ml.distributed.estimate.cluster import Cluster
from ml.runs import open_teacher
from ml.training import RunFolder, train
from ml.training.estimate.planning import plan

GOLDEN = Path(__file__).parent / "golden"
README = Path(__file__).parents[1] / "README.md"
WITHOUT_MODEL = {"recipes/finetune.gin"}  # tested with --init_from
RECIPES = [
    "base.gin",
    *sorted(
        {p.relative_to(ml.SHIPPED_CONFIGS).as_posix() for p in ml.SHIPPED_CONFIGS.glob("recipes/*.gin")} - WITHOUT_MODEL
    ),
]
SHAPES = sorted(p.relative_to(ml.SHIPPED_CONFIGS).as_posix() for p in ml.SHIPPED_CONFIGS.glob("models/*_[0-9]*.gin"))
CONFIGS = [*RECIPES, *(shape for shape in SHAPES if shape.replace("models/", "recipes/") not in RECIPES)]
# GPT-2 small and Llama 3 as published; the others are counted in transformers' models of the same shape.
PARAMETERS = {
    "models/gpt2_124m.gin": 124_439_808,
    "models/llama_1b.gin": 1_235_814_400,
    "models/llama_8b.gin": 8_030_261_248,
    "models/llama_70b.gin": 70_553_706_496,
}
PUBLISHED = {
    "models/qwen3_0.6b.gin": (
        "Qwen3",
        {
            "vocab_size": 151936, "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16,
            "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072, "tie_word_embeddings": True,
        },
    ),
    "models/mistral_7b.gin": ("Mistral", {"vocab_size": 32000, "intermediate_size": 14336}),
    "models/mixtral_8x7b.gin": ("Mixtral", {"vocab_size": 32000, "intermediate_size": 14336}),
    "models/gemma3_1b.gin": (
        "Gemma3",
        {
            "vocab_size": 262144, "hidden_size": 1152, "num_hidden_layers": 26, "num_attention_heads": 4,
            "num_key_value_heads": 1, "head_dim": 256, "intermediate_size": 6912,
        },
    ),
    "models/deepseek_v3_16b.gin": (
        "DeepseekV3",
        {
            "vocab_size": 163840, "hidden_size": 2048, "num_hidden_layers": 27, "num_attention_heads": 16,
            "num_key_value_heads": 16, "q_lora_rank": None, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64, "v_head_dim": 128, "intermediate_size": 11264, "moe_intermediate_size": 1408,
            "n_routed_experts": 64, "num_experts_per_tok": 6, "n_shared_experts": 2, "first_k_dense_replace": 1,
            "n_group": 1, "topk_group": 1,
        },
    ),
    "models/mamba2_1.3b.gin": (
        "Mamba2",
        {
            "vocab_size": 50288, "hidden_size": 2048, "num_hidden_layers": 48, "num_heads": 64, "head_dim": 64,
            "n_groups": 1, "tie_word_embeddings": True,
        },
    ),
}  # fmt: skip
# Bindings that make a recipe small enough to train for a few steps.
TRAINING = [
    "Trainer.num_steps = 3", "Trainer.batch_size = 2", "Trainer.micro_batch_size = 1", "Trainer.sequence_length = 32",
    "Trainer.compile = False", "Trainer.precision = @Float32", "CosineSchedule.warmup_steps = 1",
    "TextFiles.paths = 'text.txt'", "Validation.num_tokens = 64", "Validation.every = None", "Checkpoints.every = None",
]  # fmt: skip
WIDTHS = ["LanguageModel.vocab_size = 256", "LanguageModel.hidden_size = 32"]
REPEATED = [*WIDTHS, "decoder/Repeat.num_blocks = 2"]
HEADS = ["Attention.num_heads = 4", "Attention.num_kv_heads = 2", "Attention.head_size = 8"]
GATED = ["GatedMLP.intermediate_size = 48"]
ADAPTERS = ["Linear.apply_peft = @LoRA", "Parameter.lr_scale = 0.0", "adapter/Parameter.lr_scale = 1.0"]
ONE_PROCESS = ["Mesh.data_shard = -1", "Mesh.data_replicate = 1", "Mesh.tensor = 1"]
SMALL = {
    "base.gin": [],
    "recipes/tiny.gin": [],
    "recipes/lora.gin": [],
    "recipes/chat.gin": ["LanguageModel.vocab_size = 300"],
    "recipes/dpo.gin": ["LanguageModel.vocab_size = 300", *ADAPTERS],
    "recipes/token_files_30m.gin": [*REPEATED, *HEADS, *GATED],
    "recipes/vision_language.gin": ["Shapes.num_images = 60", "Trainer.sequence_length = 56"],
    "recipes/llama_30m.gin": [*REPEATED, *HEADS, *GATED],
    "recipes/llama_1b.gin": [*REPEATED, *HEADS, *GATED],
    "recipes/llama_8b_hsdp.gin": [*REPEATED, *HEADS, *GATED, *ONE_PROCESS],
    "recipes/llama_70b_tensor.gin": [*REPEATED, *HEADS, *GATED, *ONE_PROCESS],
    "recipes/gpt2_124m.gin": [*REPEATED, "Attention.num_heads = 4", "MLP.intermediate_size = 64"],
    "recipes/qwen3_0.6b.gin": [*REPEATED, *HEADS, *GATED],
    "models/llama_8b.gin": [*REPEATED, *HEADS, *GATED],
    "models/llama_70b.gin": [*REPEATED, *HEADS, *GATED],
    "models/mistral_7b.gin": [*REPEATED, *HEADS, *GATED, "Attention.window_size = 8"],
    "models/mixtral_8x7b.gin": [*REPEATED, *HEADS, *GATED],
    "recipes/gemma3_1b.gin": [*WIDTHS, *HEADS, *GATED, "Pattern.num_blocks = 6", "local/Attention.window_size = 8"],
    "models/deepseek_v3_16b.gin": [
        *WIDTHS, "sparse/Repeat.num_blocks = 2", "LatentAttention.num_heads = 2", "LatentAttention.head_size = 8",
        "LatentAttention.key_value_rank = 16", "LatentAttention.rotary_size = 4", "LatentAttention.value_head_size = 8",
        "MixtureOfExperts.num_experts = 8", "dense/GatedMLP.intermediate_size = 48",
        "experts/GatedMLP.intermediate_size = 16", "shared_expert/GatedMLP.intermediate_size = 16",
    ],
    "recipes/mamba2_1.3b.gin": [*REPEATED, "Mamba2.head_size = 16", "Mamba2.state_size = 8"],
    "recipes/hybrid_1.5b.gin": [*WIDTHS, *HEADS, *GATED, "Pattern.num_blocks = 4", "GatedDeltaNet.num_heads = 2"],
}  # fmt: skip


def includes(name):
    """Returns a shipped file and all files that it includes."""
    found, waiting = set(), [name]
    while waiting:
        found.add(name := waiting.pop())
        text = (ml.SHIPPED_CONFIGS / name).read_text(encoding="utf-8")
        waiting += set(re.findall(r"^include '(.*)'", text, re.MULTILINE)) - found
    return found


def load(recipe, bindings=(), **options):
    """Loads a recipe with values for its required settings."""
    required = ["TokenFiles.paths = 'tokens'"] if "data/token_files.gin" in includes(recipe) else []
    return ml.load(recipe, [*required, *bindings], **options)


@pytest.mark.parametrize("recipe", CONFIGS)
def test_a_recipe_has_its_golden_operative_config(recipe):
    operative = load(recipe).operative
    golden = GOLDEN / f"{Path(recipe).stem}.gin"
    if os.environ.get("JUNIPER_UPDATE_GOLDEN"):
        golden.write_text(operative, encoding="utf-8")
    assert operative == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("recipe", CONFIGS)
def test_a_recipe_saved_and_loaded_is_the_same(recipe):
    golden = GOLDEN / f"{Path(recipe).stem}.gin"
    assert ml.load(golden).operative == golden.read_text(encoding="utf-8")


def test_every_golden_config_has_a_recipe():
    assert {path.stem for path in GOLDEN.iterdir()} == {Path(recipe).stem for recipe in CONFIGS}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_head_of_a_recipe_matches_its_run(recipe):
    head = stated((ml.SHIPPED_CONFIGS / recipe).read_text(encoding="utf-8"))
    facts = computed(load(recipe))
    trained_on_tokens = "data/token_files.gin" in includes(recipe)
    expected = {"parameters", "tokens", "memory", "hardware"} | ({"tokenizer"} if trained_on_tokens else set())
    assert expected <= head.keys()
    assert {name: head[name] for name in facts if name in head} == {name: facts[name] for name in facts if name in head}


def test_the_readme_has_a_row_for_each_recipe():
    rows = re.findall(r"^\| `([^`]+\.gin)` \|(.*)\|$", README.read_text(encoding="utf-8"), re.MULTILINE)
    expected = []
    for recipe in RECIPES:
        head = stated((ml.SHIPPED_CONFIGS / recipe).read_text(encoding="utf-8"))
        memory = head["memory"].removesuffix(" without activations")
        expected.append((recipe, [head["parameters"], head["tokens"].split(" in ")[0], memory, head["hardware"]]))
    assert [(name, [cell.strip() for cell in cells.split("|")]) for name, cells in rows] == expected


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if "data/token_files.gin" in includes(recipe)])
def test_a_recipe_for_token_files_requires_them(recipe):
    with pytest.raises(ml.ConfigError) as caught:
        ml.load(recipe)
    assert len(caught.value.problems) == 1
    assert "data/token_files.gin:7: TokenFiles.paths must be set" in str(caught.value)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_model_with_a_subword_vocabulary_reads_token_files(recipe):
    trainer = build_trainer(load(recipe))
    has_subwords = trainer.model.vocab_size > 257  # bytes and an image token
    assert isinstance(trainer.data, TokenFiles) == (
        has_subwords and recipe not in ("recipes/chat.gin", "recipes/dpo.gin")
    )


@pytest.mark.parametrize(("recipe", "count"), PARAMETERS.items(), ids=PARAMETERS)
def test_published_models_have_the_published_parameter_count(recipe, count):
    assert sum(p.numel() for p in build_trainer(ml.load(recipe)).model.parameters()) == count


@pytest.mark.parametrize(("recipe", "published"), PUBLISHED.items(), ids=PUBLISHED)
def test_published_shapes_have_the_parameter_count_of_transformers(recipe, published):
    name, shape = published
    config_class = getattr(transformers, f"{name}TextConfig", None) or getattr(transformers, f"{name}Config")
    with torch.device("meta"):
        oracle = getattr(transformers, f"{name}ForCausalLM")(config_class(**shape))
    model = build_trainer(ml.load(recipe)).model
    further = 0 if model.multi_token is None else sum(p.numel() for p in model.multi_token.parameters())
    count = sum(p.numel() for p in model.parameters())
    assert count - further == sum(p.numel() for p in oracle.parameters())


def write_data(texts):
    """Writes the same data as text, as conversations and preferences with a tokenizer, and as token files."""
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    train_byte_pairs(texts, Path("tokenizer.json"), 300, special, show_progress=False)
    Path("text.txt").write_text("".join(texts))
    pairs = [{"prompt": text[:3], "chosen": text[3:8], "rejected": "no"} for text in texts]
    Path("preferences.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    Path("chat.jsonl").write_text("\n".join(json.dumps({"prompt": "Go on: ", "completion": text}) for text in texts))
    for part, documents in (("train", texts[:300]), ("validation", texts[300:])):
        encoded = [np.append(ByteTokenizer().encode(text), 0) for text in documents]
        writer = TokenWriter(Path("tokens") / part, ByteTokenizer(), shard_tokens=1000)
        writer.append(np.concatenate(encoded), np.cumsum([len(tokens) for tokens in encoded]), len("".join(documents)))
        writer.finish({})


@pytest.mark.parametrize("recipe", CONFIGS)
def test_a_small_version_of_each_recipe_trains(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_data([f"{number} and {number + 1}.\n" for number in range(400)])
    trainer = build_trainer(load(recipe, [*TRAINING, *SMALL[recipe]], allow_unused_bindings=True))
    run = RunFolder(tmp_path / "run")
    cpu = torch.device("cpu")
    teacher = open_teacher(trainer, cpu)
    outcome = train(trainer, trainer.open_data(), run, cpu, teacher=teacher, stream=io.StringIO())
    assert outcome.is_finished
    losses = [record["loss"] for record in run.metrics()]
    assert all(0.0 < loss < 8.0 for loss in losses)
    assert losses[-1] != losses[0]


def test_the_30m_recipe_has_about_30_million_parameters():
    model = build_trainer(ml.load("recipes/llama_30m.gin")).model
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(30e6, rel=0.03)


def test_every_shipped_file_is_used_by_a_recipe():
    used = set().union(*map(includes, [*RECIPES, *SHAPES]))
    shipped = {path.relative_to(ml.SHIPPED_CONFIGS).as_posix() for path in ml.SHIPPED_CONFIGS.rglob("*.gin")}
    assert used <= shipped
    assert shipped - used == {"tests/kill.gin", *WITHOUT_MODEL}
    ml.load(["recipes/llama_30m.gin", "training/muon.gin"], ["Muon.learning_rate = 1e-3"])
    ml.load("tests/kill.gin")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["recipes/llama_8b_hsdp.gin", "recipes/llama_70b_tensor.gin"])
def test_memory_of_a_gpu_is_that_of_the_dry_run(recipe):
    hardware = stated((ml.SHIPPED_CONFIGS / recipe).read_text())["hardware"]
    nodes, gpus, gib = map(int, re.match(r"(\d+) nodes of (\d+) GPUs with 80 GB: (\d+) GiB", hardware).groups())
    trainer = build_trainer(ml.load(recipe, bindings=["TokenFiles.paths = 'tokens'"]))
    planned = plan(trainer, trainer.mesh_sizes(nodes * gpus), Cluster())
    assert math.ceil(planned.total_memory / 2**30) == gib
