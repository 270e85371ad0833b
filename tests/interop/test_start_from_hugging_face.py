"""Runs that start from a Hugging Face folder: the configuration, the weights, and what a user may change."""

import io
import json
import shutil
from pathlib import Path

import peft
import pytest
import safetensors.torch
import tokenizers
import torch
import transformers
from chat_shapes import write_tokenizer
from hub_models import oracle_of, saved, with_fields
from transformers import AutoModelForCausalLM, AutoTokenizer

import ml
from ml.building import build_trainer
from ml.data import JinjaTemplate
from ml.interop.errors import InteropError
from ml.interop.folder import Folder
from ml.interop.from_hugging_face import FromHuggingFace
from ml.interop.importing import imported_values
from ml.models.materialize import Draw
from ml.sweeps.file import read_sweep
from ml.sweeps.plan import plan
from ml.training.errors import RunError

DATA = ["TextData.corpus = @TextFiles", "TextFiles.paths = ['text.txt']", "Trainer.sequence_length = 16"]
SHORT = [*DATA, "Trainer.num_steps = 2", "Trainer.batch_size = 2", "Validation.num_tokens = 64"]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return saved(oracle_of("Llama", {"vocab_size": 256}), tmp_path_factory.mktemp("llama") / "hub")


@pytest.fixture
def folder(original, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("All work and no play makes Jack a dull boy. " * 200)
    return shutil.copytree(original, tmp_path / "hub")


def trained(folder, name="run", bindings=(), **options):
    config = ml.load([], [*SHORT, *bindings], init_from=folder, **options)
    return ml.train(config, name, device="cpu", stream=io.StringIO())


def logits_of(folder, tokens):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    return model(tokens).logits


def test_values_have_their_fields_as_source_also_after_a_reload(folder):
    config = ml.load([], DATA, init_from=folder)
    record = config.value("decoder/block_1/mixer", "Attention.num_kv_heads")
    assert (record.value, record.source, record.location) == ("2", "imported", "config.json#num_key_value_heads")
    run = trained(folder)
    record = run.config.value("decoder/block_1/mixer", "Attention.num_kv_heads")
    assert (record.value, record.source, record.location) == ("2", "imported", "config.json#num_key_value_heads")


def test_training_starts_from_the_weights_and_exports_them(folder):
    tokens = torch.arange(12)[None]
    still = ["Linear.lr_scale = 0.0", "AdamW.learning_rate = 1e-9", "AdamW.weight_decay = 0.0"]
    run = trained(folder, bindings=still)
    torch.testing.assert_close(run.build()(tokens), logits_of(folder, tokens), rtol=1e-4, atol=1e-4)
    shutil.rmtree(folder)  # no longer needed
    assert trained(folder, bindings=still, run_dir="run").config == run.config
    reopened = ml.open_run(run.path)
    reopened.export_hugging_face("out")
    torch.testing.assert_close(logits_of("out", tokens), reopened.build()(tokens), rtol=1e-4, atol=2e-5)
    config = json.loads(Path("out/config.json").read_text("utf-8"))
    assert config["eos_token_id"] == 2
    assert json.loads(Path("out/generation_config.json").read_text("utf-8"))["bos_token_id"] == 1


def test_the_weights_are_pinned(folder):
    run = trained(folder)
    assert "FromHuggingFace.sha256 = '" in run.config.operative
    other = saved(oracle_of("Llama", {"vocab_size": 256}, seed=4), folder.parent / "other")
    again = ml.load(run.path / "operative_config.gin", f"FromHuggingFace.path = {str(other)!r}")
    with pytest.raises(InteropError, match=r"not those of this run"):
        ml.train(again, "again", device="cpu", stream=io.StringIO())


def test_a_shape_set_by_a_file_is_an_error_that_names_both(folder):
    config = ml.load("base.gin", init_from=folder)
    with pytest.raises(RunError) as caught:
        ml.train(config, "run", device="cpu")
    told = str(caught.value)
    assert "model.embed_tokens.weight is (256, 40); embeddings.token.weight of the model would have (256, 128)" in told
    assert "LanguageModel.hidden_size = 128 (" in told
    assert "base.gin:" in told
    assert "overrides 40 (config.json#hidden_size)" in told
    assert "recipes/finetune.gin" in told
    assert not (folder.parent / "run" / "operative_config.gin").exists()


def test_a_shape_set_by_a_flag_is_an_error_that_names_both(folder):
    config = ml.load([], [*SHORT, "block_1/GatedMLP.intermediate_size = 24"], init_from=folder)
    with pytest.raises(RunError) as caught:
        ml.train(config, "run", device="cpu")
    assert "GatedMLP.intermediate_size = 24 (--gin_bindings[" in str(caught.value)
    assert "model.layers.1.mlp.up_proj.weight is (56, 40)" in str(caught.value)
    assert "layers.0" not in str(caught.value)


def test_parts_that_may_differ_start_fresh(folder):
    swap = "block_1/DecoderBlock.mixer = @GatedDeltaNet"
    sizes = ["GatedDeltaNet.num_heads = 2", "GatedDeltaNet.key_head_size = 8"]
    run = trained(folder, bindings=[swap, *sizes], init_may_differ=["decoder.block_1.mixer.*"])
    assert run.step == 2
    with pytest.raises(RunError, match=r"decoder.block_1.mixer.A_log, which Llama.*does not have"):
        trained(folder, "other", [swap, *sizes])


def test_another_scaling_keeps_theta_also_after_a_reload(folder):
    with_fields(folder, {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}})
    run = trained(folder, bindings=["Attention.rotary = @LinearRotary"])
    yarn = ml.load(run.path / "operative_config.gin", "Attention.rotary = @YarnRotary")
    for config, name in ((run.config, "LinearRotary"), (yarn, "YarnRotary")):
        record = config.value("decoder/block_0/mixer/rotary", f"{name}.theta")
        assert (record.value, record.location) == ("500.0", "config.json#rope_parameters.rope_theta")


def test_an_override_by_the_value_of_the_default_survives(folder):
    run = trained(folder, bindings=["RMSNorm.epsilon = 1e-5"])
    assert run.config.value("head/norm", "RMSNorm.epsilon").value == "1e-05"
    assert "RMSNorm.epsilon = 1e-05" in (run.path / "config.gin").read_text()


def test_a_run_of_an_export_is_the_same_model(folder):
    run = trained(folder)
    run.export_hugging_face("out", dtype=torch.bfloat16, shard_size=20_000)
    assert json.loads(Path("out/config.json").read_text("utf-8"))["dtype"] == "bfloat16"
    tokens = torch.arange(12)[None]
    again = trained("out", "again")
    assert again.step == 2
    loaded = transformers.AutoModelForCausalLM.from_pretrained("out", dtype=torch.float32, attn_implementation="eager")
    torch.testing.assert_close(loaded(tokens).logits, run.build()(tokens), rtol=0.1, atol=0.1)


def test_adapters_are_merged_or_refused(folder):
    lora = ["Linear.apply_peft = @LoRA", "LoRA.rank = 3", "LoRA.B_initialization = @normal", "normal.std = 0.1"]
    run = trained(folder, bindings=[*lora, "Parameter.lr_scale = 0.0", "adapter/Parameter.lr_scale = 1.0"])
    with pytest.raises(InteropError, match=r"Linear.apply_peft.*--merge"):
        run.export_hugging_face("out")
    run.export_hugging_face("out", merge=True)
    tokens = torch.arange(12)[None]
    torch.testing.assert_close(logits_of("out", tokens), run.build()(tokens), rtol=1e-4, atol=1e-4)


def test_an_export_names_the_first_obstacle_and_writes_nothing(folder):
    capped = trained(folder, bindings=["LanguageModelHead.logit_soft_cap = 5.0"])
    with pytest.raises(InteropError, match=r"head: LanguageModelHead.logit_soft_cap is 5.0, and there None"):
        capped.export_hugging_face("out")
    assert not list(folder.parent.glob("*out*"))
    (folder.parent / "there").mkdir()
    (folder.parent / "there" / "mine").touch()
    with pytest.raises(InteropError, match=r"there exists: name a new folder"):
        trained(folder, "plain").export_hugging_face("there")


def test_the_recipe_for_fine_tuning_takes_the_model_from_the_folder(folder):
    steps = ["Trainer.num_steps = 1", "CosineSchedule.warmup_steps = 0"]
    chats = [
        [{"role": "user", "content": f"{n} + 1?"}, {"role": "assistant", "content": f"{n + 1}"}] for n in range(80)
    ]
    Path("chat.jsonl").write_text("\n".join(json.dumps({"messages": chat}) for chat in chats))
    config = ml.load("recipes/finetune.gin", [*steps, "Trainer.sequence_length = 32"], init_from=folder)
    assert {record.source for record in config.records() if record.path.startswith("decoder")} <= {
        "default",
        "parent",
        "imported",
    }
    assert ml.train(config, "run", device="cpu", stream=io.StringIO()).step == 1


@pytest.mark.parametrize("kind", ["LoRA", "DoRA"])
def test_adapters_alone_are_a_folder_of_peft(folder, kind):
    lora = ["Linear.apply_peft = @LoRA", "LoRA.rank = 3", "LoRA.alpha = 5.0", "LoRA.B_initialization = @normal"]
    lora += ["TokenEmbedding.apply_peft = @LoRA", "LanguageModelHead.apply_peft = @LoRA"]
    lora = [binding.replace("LoRA", kind) for binding in lora]
    lora += ["DoRA.magnitude_initialization = @constant", "constant.value = 0.8"] if kind == "DoRA" else []
    more = ["normal.std = 0.1", f"block_1/{kind}.rank = 2", "up/Linear.apply_peft = None"]
    frozen = ["Parameter.lr_scale = 0.0", "adapter/Parameter.lr_scale = 1.0"]
    run = trained(folder, bindings=[*lora, *more, *frozen])
    run.export_adapter("adapter")
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    model = peft.PeftModel.from_pretrained(base, "adapter")
    tokens = torch.arange(12)[None]
    torch.testing.assert_close(model(tokens).logits, run.build()(tokens), rtol=1e-4, atol=1e-4)
    assert (model(tokens).logits - logits_of(folder, tokens)).abs().max() > 0.1
    partly = trained(folder, "partly", [*lora, "Parameter.lr_scale = 0.0", "embeddings/Parameter.lr_scale = 1.0"])
    with pytest.raises(InteropError, match=r"embeddings.token.weight was trained beside the adapters"):
        partly.export_adapter("other")


def test_the_tokenizer_and_the_chat_template_of_the_folder_are_those_of_the_run(folder):
    words = {"<s>": 0, "a": 1, "b": 2, "c": 3, "[UNK]": 4}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{% for message in messages %}{{ message.content }} {% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<s>", "chat_template": template}))
    start = FromHuggingFace(path=str(folder))
    assert start.tokenizer().encode("a c b").tolist() == [1, 3, 2]
    assert start.tokenizer().end_of_document == 0
    (template_value,) = (v for v in imported_values(Folder(folder)) if v.key.endswith("ChatData.template"))
    assert template_value.value is JinjaTemplate
    run = trained(folder, bindings=["Trainer.validation = None"])  # words have no bytes
    shutil.move(folder, "elsewhere")
    reopened = ml.open_run(run.path)
    assert reopened.tokenizer.encode("a c b").tolist() == [1, 3, 2]
    reopened.export_hugging_face("out")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert Path("out", name).read_bytes() == Path("elsewhere", name).read_bytes()


def test_a_sweep_starts_from_the_folder(folder):
    lines = [f"init_from = {str(folder)!r}", f"gin_bindings = {json.dumps(SHORT)}", "[grid]", '"Trainer.seed" = [1, 2]']
    Path("sweep.toml").write_text("\n".join(lines))
    planned = plan(read_sweep(Path("sweep.toml")), Path("runs"))
    assert [member.init_step for member in planned] == [None, None]
    command = planned[0].command(read_sweep(Path("sweep.toml")))
    assert f"--init_from={folder}" in command
    assert not [flag for flag in command if flag.startswith("--init_step")]


CASES = {  # fields of the model, bindings, whether the rows of new tokens are the mean of the earlier ones
    "grown": ({}, ["LanguageModel.vocab_size = 344"], True),
    "tied, grown": ({"tie_word_embeddings": True}, ["LanguageModel.vocab_size = 342"], True),
    "there already": ({"vocab_size": 350}, [], True),
    "fresh": ({}, ["LanguageModel.vocab_size = 344", "FromHuggingFace.new_tokens = 'fresh'"], False),
}


@pytest.mark.parametrize(("fields", "bindings", "is_mean"), CASES.values(), ids=CASES)
def test_embedding_and_head_grow_by_added_tokens(fields, bindings, is_mean, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hub = write_tokenizer(tmp_path / "hub")
    size = tokenizers.Tokenizer.from_file(str(hub / "tokenizer.json")).get_vocab_size()
    assert size == 340 - 3
    saved(oracle_of("Llama", {"vocab_size": size, **fields}), hub)
    Path("text.txt").write_text("All work and no play makes Jack a dull boy. " * 200)
    added = ["TextData.tokenizer = @HuggingFaceTokenizer", "HuggingFaceTokenizer.path = 'hub'"]
    added += ["HuggingFaceTokenizer.added_tokens = ['<new>', '<|im_end|>', '<newer>']", "Trainer.validation = None"]
    still = ["AdamW.learning_rate = 1e-30", "AdamW.weight_decay = 0.0"]
    run = trained(hub, bindings=[*added, *still, *bindings])
    fresh = build_trainer(run.config).start(torch.device("cpu")).model.state_dict()
    earlier, grown = safetensors.torch.load_file("hub/model.safetensors"), dict(run.build().named_parameters())
    names = {"embeddings.token.weight": "model.embed_tokens.weight", "head.weight": "lm_head.weight"}
    assert ("head.weight" in grown) == (not fields.get("tie_word_embeddings"))
    for ours, theirs in names.items():
        if ours not in grown:
            continue
        table = earlier[theirs]
        assert torch.equal(grown[ours][:size], table[:size])
        expected = table[:size].double().mean(0).float().expand(2, -1) if is_mean else fresh[ours][size : size + 2]
        torch.testing.assert_close(grown[ours][size : size + 2], expected, rtol=1e-5, atol=1e-7)
        padding = table[size + 2 :] if len(table) > size else fresh[ours][size + 2 :]
        assert torch.equal(grown[ours][size + 2 :], padding)
    run.export_hugging_face("out")
    model, tokenizer = (kind.from_pretrained("out") for kind in (AutoModelForCausalLM, AutoTokenizer))
    assert model.config.vocab_size == len(grown["embeddings.token.weight"])
    assert torch.equal(model.get_input_embeddings().weight, grown["embeddings.token.weight"])
    assert tokenizer.convert_tokens_to_ids(["<new>", "<newer>"]) == [size, size + 1]
    assert tokenizer("a<newer>b")["input_ids"][1] == size + 1


def test_a_vocabulary_that_grows_without_new_tokens_is_refused(folder):
    with pytest.raises(RunError, match=r"embeddings.token.weight of the model would have \(300, 40\)"):
        trained(folder, bindings=["LanguageModel.vocab_size = 300"])


def test_weights_that_are_read_are_not_drawn_and_new_parts_are_drawn_as_ever(folder, monkeypatch):
    swap = ["block_1/DecoderBlock.mixer = @GatedDeltaNet", "GatedDeltaNet.num_heads = 2"]
    still = ["GatedDeltaNet.key_head_size = 8", "Parameter.lr_scale = 0.0", "head/Parameter.lr_scale = 1.0"]
    drawn, draw = [], Draw.values
    monkeypatch.setattr(Draw, "values", lambda self: [drawn.append(self.name), draw(self)][1])
    run = trained(folder, bindings=[*swap, *still], init_may_differ=["decoder.block_1.mixer.*"])
    assert drawn
    assert all(name.startswith("decoder.block_1.mixer.") for name in drawn)
    before = set(drawn)
    fresh, found = build_trainer(run.config).start(torch.device("cpu")).model.state_dict(), run.build().state_dict()
    assert all(torch.equal(found[name], fresh[name]) for name in before)
    stored = safetensors.torch.load_file("hub/model.safetensors")
    assert torch.equal(found["decoder.block_0.mlp.up.weight"], stored["model.layers.0.mlp.up_proj.weight"])
