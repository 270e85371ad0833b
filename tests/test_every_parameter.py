"""Every parameter of every configurable changes something when it is set.

The test finds configurables and parameters in the registry. A few small runs, `BASES`, build most of them; a
configurable that only replaces another (an initialization, a norm, a schedule) is tested in place of a sibling. For
each parameter, the test derives values from its type that differ from the value in effect. One of them must be valid,
and it must change the model, the operations of a step, the groups of the optimizer, or the files of a run.
"""

import ast
import base64
import collections.abc
import contextlib
import functools
import gzip
import hashlib
import io
import itertools
import json
import re
import sys
import tempfile
import threading
import types
import typing
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers
import torch
from quick_trainers import trainer_and_unused
from torch.utils._python_dispatch import TorchDispatchMode

import ml
from ml.api import build_trainer
from ml.building import _trainer_on_meta
from ml.config import ConfigError, load
from ml.config.configurable import candidates, known_names
from ml.config.neutrality import is_declared_neutral
from ml.config.signatures import EMPTY, Configurable, ParameterSpec
from ml.config.types import mismatch
from ml.config.values import Reference
from ml.data import ByteTokenizer, ChatCorpus, DataError, PackedDocuments, PreferenceCorpus, TextFiles
from ml.data.chat.messages import Completion, Conversation
from ml.data.chat.preferences import Preference
from ml.data.sequences.packing import Pieces
from ml.data.token_files.writing import TokenWriter
from ml.data.tokenizers.training import train_byte_pairs
from ml.interop.exporting import export_folder
from ml.runs import open_teacher
from ml.training import (
    AdamW,
    Checkpoints,
    DirectPreferenceOptimization,
    MemorySnapshot,
    RunFailure,
    RunFolder,
    Trainer,
    Validation,
    train,
)
from ml.training.checkpoints.policy import newest_checkpoint
from ml.training.checkpoints.reference import CheckpointReference, CheckpointSource
from ml.training.checkpoints.tensor_files import read_tensors
from ml.training.metrics.throughput import MACHINE_METRICS
from ml.training.schedules.phases import ConstantPhase
from ml.training.state import MODEL, named_weights
from ml.training.step import train_step

CPU = torch.device("cpu")
SPECIAL = ["<|endoftext|>", "turn"]
TINY = """
LanguageModel.vocab_size = 256
LanguageModel.hidden_size = 16
decoder/Repeat.num_blocks = 2
Attention.num_heads = 4
DecoderBlock.dropout = 0.2
AdamW.learning_rate = 1e-2
CosineSchedule.warmup_steps = 2
Trainer.num_steps = 6
Trainer.batch_size = 4
Trainer.sequence_length = 16
Trainer.log_every = 2
Checkpoints.every = 2
Checkpoints.keep = None
Validation.every = 3
Validation.num_tokens = 200
TextFiles.paths = ['texts']
"""
MIXER = "DecoderBlock.mixer = @{0}"
EXPERTS = "DecoderBlock.mlp = @MixtureOfExperts\nMixtureOfExperts.num_experts = 4\nMixtureOfExperts.router = @{0}"
VISION = """
Trainer.model = @VisionLanguageModel
LanguageModel.vocab_size = 257
Trainer.data = @ImageTextData
Trainer.sequence_length = 64
Shapes.num_images = 40
VisionEncoder.hidden_size = 16
vision/Repeat.num_blocks = 1
vision/Attention.causal = False
vision/Attention.rotary = @TwoDimensionalRotary
"""
FILL = """
TextData.fill_in_the_middle = @FillInTheMiddle
FillInTheMiddle.prefix = 250
FillInTheMiddle.suffix = 251
FillInTheMiddle.middle = 252
TextFiles.paths = ['text.txt', 'other.txt']
"""
FILES = """ImageTextData.corpus = @ImageTextFiles
        ImageTextFiles.path = 'images.jsonl'
        ImageTextFiles.on_error = 'skip'"""
TOKENIZER = "LanguageModel.vocab_size = 1024\nTextData.separator = None\nTextData.tokenizer = @{0}Tokenizer\n"
RANKS = TOKENIZER.format("Tiktoken") + "TiktokenTokenizer.path = '{0}'\nTiktokenTokenizer.pattern = '[a-z]+|[^a-z]+'"
WORDS = TOKENIZER.format("HuggingFace") + "HuggingFaceTokenizer.path = '{0}'"
PIECES = TOKENIZER.format("SentencePiece") + "SentencePieceTokenizer.path = '{0}'"
PHASES = ("Warmup", "PowerLaw", "Polynomial", "Restarts", "Constant", "SquareRoot", "Cosine", "Linear")


def phases(length: str) -> str:
    """Returns a schedule with every kind of phase, all of one length, before a phase of the remaining steps."""
    named = ", ".join(f"'{kind}': @{kind}Phase" for kind in PHASES)
    lengths = [f"{kind}Phase.{length}" for kind in PHASES]
    schedule = ["Trainer.schedule = @PhasedSchedule", f"PhasedSchedule.phases = {{{named}, 'rest': @Rest}}"]
    ends = ["PolynomialPhase.end = 0.3", "SquareRootPhase.end = 0.4", "RestartsPhase.num_cycles = 2"]
    return "\n".join([*schedule, *lengths, *ends, "Trainer.num_steps = 27"])


MODELS = {
    "plain": "",
    "plain, other sides": """
        Attention.query_norm = @RMSNorm
        Attention.window_size = 3
        Attention.attention_sinks = True
        Attention.soft_cap = 5.0
        LanguageModelHead.z_loss = 0.01
        Linear.apply_peft = @LoRA
        LoRA.B_initialization = @normal
        LoRA.dropout = 0.1
        DecoderBlock.mlp = @MLP
        output/Linear.kernel = @Float8
        Embeddings.position = @PositionEmbedding
        TextData.separate_documents = True
        Trainer.micro_batch_size = 2
        DecoderBlock.activation_checkpointing = @SelectiveActivationCheckpointing
        DecoderBlock.normalization = @LayerNorm""",
    "parallel": """
        DecoderBlock.parallel = True
        LanguageModelHead.bias = True
        Attention.query_norm = @RMSNorm
        DecoderBlock.normalization = @LayerNorm""",
    "DoRA": """
        Linear.apply_peft = @DoRA
        DoRA.B_initialization = @normal
        DoRA.dropout = 0.1
        TokenEmbedding.apply_peft = @LoRA
        LanguageModelHead.apply_peft = @LoRA
        LoRA.B_initialization = @normal""",
    "pattern": """
        LanguageModel.decoder = @Pattern
        Pattern.blocks = {'a': @DecoderBlock, 'b': @DecoderBlock}
        Pattern.pattern = ['a', 'b']
        Pattern.num_blocks = 4
        b/DecoderBlock.mlp = None""",
    "chain": """
        LanguageModel.decoder = @Chain
        Chain.sequences = {'first': @DecoderBlock, 'rest': @Repeat}
        rest/Repeat.num_blocks = 2""",
    "dynamic rotary": """
        Attention.rotary = @DynamicRotary
        DynamicRotary.original_length = 8
        Attention.head_size = 8""",
    "LongRoPE": """
        Attention.rotary = @LongRotary
        Attention.head_size = 4
        LongRotary.factor = 2.0
        LongRotary.original_length = 8
        LongRotary.short_factors = [1.0, 1.5]
        LongRotary.long_factors = [2.0, 3.0]""",
    "LongRoPE, short": """
        Attention.rotary = @LongRotary
        Attention.head_size = 8
        LongRotary.original_length = 64
        LongRotary.short_factors = [1.5]
        LongRotary.long_factors = [2.0]""",
    "YaRN": """
        Attention.rotary = @YarnRotary
        Attention.head_size = 32
        YarnRotary.original_length = 16
        YarnRotary.mscale_all_dim = 0.5
        YarnRotary.truncate = False""",
    "multi-token": """
        LanguageModel.multi_token = @MultiTokenPrediction
        MultiTokenPrediction.num_depths = 2""",
    "latent attention": MIXER.format("LatentAttention")
    + """
        LatentAttention.num_heads = 2
        LatentAttention.key_value_rank = 6
        LatentAttention.query_rank = 5
        LatentAttention.head_size = 4
        LatentAttention.rotary_size = 4
        LatentAttention.value_head_size = 6""",
    "Mamba": MIXER.format("Mamba"),
    "Mamba-2": MIXER.format("Mamba2")
    + "\nMamba2.head_size = 8\nMamba2.chunk_size = 4\nMamba2.num_groups = 2"
    + "\nMamba2.projection_scales = {'gate': 2.0, 'x': 1.0, 'B': 1.0, 'C': 1.0, 'dt': 1.0}",
    "gated delta net": MIXER.format("GatedDeltaNet") + "\nGatedDeltaNet.num_heads = 2\nGatedDeltaNet.chunk_size = 4",
    "Kimi delta attention": MIXER.format("KimiDeltaAttention")
    + "\nKimiDeltaAttention.num_heads = 2\nKimiDeltaAttention.chunk_size = 4",
    "lightning attention": MIXER.format("LightningAttention") + "\nLightningAttention.num_heads = 2",
    "parallel mixers": MIXER.format("ParallelMixer")
    + "\nParallelMixer.mixers = {'full': @Attention, 'short': @ShortConvolutionMixer}"
    + "\nParallelMixer.input_scales = {'full': 2.0, 'short': 1.0}"
    + "\nParallelMixer.output_scales = {'full': 2.0, 'short': 1.0}"
    + "\nAttention.alibi = True",
    "short convolution": MIXER.format("ShortConvolutionMixer"),
    "stochastic": MIXER.format("StochasticMixer")
    + "\nStochasticMixer.mixers = {'full': @Attention, 'short': @ShortConvolutionMixer}"
    + "\nStochasticMixer.weights = {'full': 1.0, 'short': 1.0}",
    "softmax router": EXPERTS.format("SoftmaxRouter")
    + """
        MixtureOfExperts.shared_expert = @GatedMLP
        SoftmaxRouter.bias = True
        SoftmaxRouter.balance_bias = True
        SoftmaxRouter.num_groups = 2
        SoftmaxRouter.groups_per_token = 2""",
    "sigmoid router": EXPERTS.format("SigmoidRouter") + "\nSigmoidRouter.num_groups = 2\nSigmoidRouter.bias = True",
    "vision": VISION,
}
JINJA = """
    Trainer.data = @ChatData
    ChatFiles.paths = 'chat'
    ChatFiles.on_error = 'skip'
    ChatData.template = @JinjaTemplate
    JinjaTemplate.path = '{}'
    JinjaTemplate.variables = {{'name': '{}'}}
    JinjaTemplate.date = '{}'
    Trainer.sequence_length = 160"""
TEMPLATE = """{{% for message in messages %}}{{{{ name }}}} {} {{{{ strftime_now('%Y') }}}} {{{{ message.role }}}}
{{% generation %}}{{{{ message.content }}}}{{% endgeneration %}}{{% endfor %}}"""
# The models of these bases are those of the bases above.
RUNS = {
    "samples": """
        Trainer.samples = @Samples
        Samples.every = 2
        Samples.num_tokens = 8""",
    "validation by name": """
        Trainer.validation = {'books': @Validation}
        Validation.data = @TextData""",
    "distillation": """
        Trainer.distillation = @Distillation
        Distillation.teacher = 'teacher'""",
    "from a run": """
        Trainer.initial_weights = @FromRun
        FromRun.path = 'teacher'
        Trainer.seed = 1""",
    "from Hugging Face": """
        Trainer.initial_weights = @FromHuggingFace
        FromHuggingFace.path = 'hub'""",
    "Muon": """
        Trainer.optimizer = @Muon
        Muon.learning_rate = 0.01
        Muon.matrices = ('*mixer.*', '*mlp.*')
        Muon.exclude = ('*query.*', '*key.*')
        Muon.state_format = @Blockwise8BitState
        Blockwise8BitState.block_size = 8""",
    "phases by steps": phases("num_steps = 3"),
    "phases by fractions": phases("fraction = 0.1"),
    "one phase": "Trainer.schedule = @PhasedSchedule\nPhasedSchedule.phases = {'only': @WarmupPhase}",
    "epochs": """
        Trainer.num_steps = None
        Trainer.num_epochs = 1.0
        Trainer.epoch_sequences = 24
        TextFiles.pattern = '*.txt'""",
    "skip, average": """
        Trainer.skip_step = @SkipStep
        Trainer.weight_average = @ExponentialMovingAverage
        SkipStep.window = 4
        SkipStep.min_history = 2
        SkipStep.threshold = 0.1
        AdamW.learning_rate = 1.0
        Trainer.num_steps = 16""",
    "packed": """
        TextData.sampling = @PackedDocuments
        TextData.hold_out_by = 'name'
        TextData.validation_fraction = 0.05
        PackedDocuments.window = 40
        TextFiles.paths = ['short']""",
    "rows": "TextFiles.paths = ['rows']\nTextFiles.on_error = 'skip'\nTextFiles.text_key = 'turn'",
    "token files": """
        Trainer.data = @TokenFiles
        TokenFiles.paths = 'tokens'""",
    "other token files": """
        Trainer.data = @TokenFiles
        TokenFiles.paths = 'other_tokens'
        TokenFiles.fill_in_the_middle = @FillInTheMiddle
        FillInTheMiddle.prefix = 250
        FillInTheMiddle.suffix = 251
        FillInTheMiddle.middle = 252""",
    "fill in the middle": FILL,
    "chat": """
        Trainer.data = @ChatData
        ChatFiles.paths = 'chat'
        ChatFiles.on_error = 'skip'
        Trainer.sequence_length = 160""",
    "other chat": """
        Trainer.data = @ChatData
        ChatFiles.paths = 'other_chat'
        Trainer.sequence_length = 160""",
    "Jinja": JINJA.format("templates", "first", "20260131"),
    "other Jinja": JINJA.format("other_templates", "second", "20250131"),
    "folder of chats": """
        Trainer.data = @ChatData
        ChatFiles.paths = 'chats'
        ChatFiles.pattern = '*'
        Trainer.sequence_length = 160""",
    "preferences": """
        Trainer.data = @PreferenceData
        Trainer.preference = @DirectPreferenceOptimization
        DirectPreferenceOptimization.reference = 'teacher'
        PreferenceFiles.paths = 'pairs'
        PreferenceFiles.on_error = 'skip'
        Trainer.sequence_length = 160""",
    "other preferences": """
        Trainer.data = @PreferenceData
        Trainer.preference = @DirectPreferenceOptimization
        DirectPreferenceOptimization.reference = 'another_teacher'
        DirectPreferenceOptimization.loss = 'ipo'
        PreferenceFiles.paths = 'other_pairs'
        Trainer.sequence_length = 160""",
    "folder of preferences": """
        Trainer.data = @PreferenceData
        Trainer.preference = @DirectPreferenceOptimization
        DirectPreferenceOptimization.reference = 'teacher'
        PreferenceFiles.paths = 'preferences'
        PreferenceFiles.pattern = '*'
        Trainer.sequence_length = 160""",
    "mixture": """
        Trainer.data = @Mixture
        Mixture.datasets = {'a': @TextData, 'b': @TokenFiles}
        Mixture.weights = {'a': 1.0, 'b': 2.0}
        TokenFiles.paths = 'tokens'""",
    "concatenation": """
        Trainer.data = @Concatenation
        Concatenation.datasets = {'a': @TextData, 'b': @TokenFiles}
        TokenFiles.paths = 'tokens'""",
    "tiktoken": RANKS.format("ranks") + "\nTiktokenTokenizer.special_tokens = {'<|endoftext|>': 280, 'turn': 281}",
    "other tiktoken": RANKS.format("other_ranks") + "\nTiktokenTokenizer.end_of_document = None",
    "Hugging Face": WORDS.format("words"),
    "other Hugging Face": WORDS.format("other_words") + "\nHuggingFaceTokenizer.end_of_document = 'turn'",
    "SentencePiece": PIECES.format("pieces"),
    "other SentencePiece": PIECES.format("other_pieces")
    + """
        SentencePieceTokenizer.end_of_document = '<tool>'
        SentencePieceTokenizer.begin_of_document = '<tool>'""",
    "watched": """
        Trainer.trackers = [@TensorBoard, @WeightsAndBiases]
        Trainer.norms = @Norms
        Trainer.memory_snapshot = @MemorySnapshot""",
    "profiled": "Trainer.profiler = @Profiler\nProfiler.first_step = 2",
    "images from files": VISION.replace("Shapes.num_images = 40", FILES),
    "few are kept": """
        Checkpoints.keep = 1
        Checkpoints.keep_best = 'validation_loss'
        Validation.every = 1
        AdamW.learning_rate = 1.0""",
    "saved by time": "Checkpoints.every = None\nCheckpoints.every_minutes = 1e-9",
    "early stopping": """
        Trainer.weight_average = @ExponentialMovingAverage
        Trainer.early_stopping = @EarlyStopping
        EarlyStopping.metric = 'average_validation_loss'
        EarlyStopping.patience = 2
        ExponentialMovingAverage.warmup = False
        Validation.every = 1
        AdamW.learning_rate = 0.3""",
    "stopped early": "Trainer.early_stopping = @EarlyStopping\nAdamW.learning_rate = 1.0\nValidation.every = 1",
}
BASES = MODELS | RUNS
Change = tuple[tuple[str, ...], str]  # the bindings of a run, and one more
TIMING = MACHINE_METRICS


@pytest.fixture(scope="module", autouse=True)
def folder():
    """Creates the input files of the runs: two texts, images with captions, two trained models."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.chdir(name)
        Path("texts").mkdir()
        Path("texts/a.txt").write_text("A text of some length, which is long enough. " * 60)
        Path("texts/b.log").write_bytes(b"Another one with a byte \xff that no text has. " * 60)
        for file, factor in (("text.txt", 1), ("other.txt", 7)):
            lines = (f"{number} times {factor} is {number * factor}.\n" for number in range(150))
            Path(file).write_text("".join(lines))
        write_documents()
        write_tokenizers()
        images = np.random.default_rng(0).integers(0, 255, (12, 64, 64, 3), dtype=np.uint8)
        for listing, step in (("images.jsonl", 1), ("others.jsonl", 2)):
            with Path(listing).open("w") as lines:
                for index, image in enumerate(images[::step]):
                    np.save(f"{listing}_{index}.npy", image)
                    lines.write(json.dumps({"image": f"{listing}_{index}.npy", "text": f"number {index}"}) + "\n")
                lines.write("{")  # a malformed line
        for teacher, seed in (("teacher", 1), ("another_teacher", 2)):
            averaged = "Trainer.weight_average = @ExponentialMovingAverage"
            config = ml.load(bindings=[TINY, f"Trainer.seed = {seed}", averaged])
            run = RunFolder(teacher)
            run.create()
            run.write_config(config.text, config.operative, config.provenance())
            trainer = build_trainer(config)
            train(trainer, trainer.open_data(), run, CPU, stream=io.StringIO())
        for hub, seed in (("hub", 1), ("another_hub", 2)):
            trainer = build_trainer(ml.load(bindings=[TINY, f"Trainer.seed = {seed}"]))
            export_folder(trainer.start(CPU).model, Path(hub))
        patch.setitem(sys.modules, "wandb", Service())
        patch.setattr(MemorySnapshot, "check", lambda self: None)
        patch.setattr(torch.cuda.memory, "_record_memory_history", record_memory)
        patch.setattr(torch.cuda.memory, "_dump_snapshot", lambda path: Path(path).write_text(str(ASKED)))
        yield


ASKED: list[dict] = []  # Arguments of the recorder of GPU allocations, which is mocked here.


def record_memory(**options):
    if "max_entries" in options:
        ASKED[:] = [options]


class Service:
    """Replaces wandb: writes its calls to a file of the run."""

    step = 0

    def Settings(self, **options):
        return options

    def init(self, **options):
        told = {name: value for name, value in options.items() if name not in ("id", "dir", "config")}
        (Path(options["dir"]) / "wandb/told.json").write_text(json.dumps(told))
        return self

    def log(self, *_, **options):
        pass

    def finish(self, exit_code):
        pass


def write_tokenizers():
    """Writes two tokenizers of each library, with bytes and a few merges."""
    for prefix, text, size in (("", "text.txt", 262), ("other_", "texts/a.txt", 265)):
        train_byte_pairs(
            ["a number is long, " * 9], Path(f"{prefix}words/tokenizer.json"), size, SPECIAL, show_progress=False
        )
        with_begin = tokenizers.Tokenizer.from_file(f"{prefix}words/tokenizer.json")
        with_begin.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{SPECIAL[1]} $A", special_tokens=[(SPECIAL[1], 1)]
        )
        with_begin.save(f"{prefix}words/tokenizer.json")
        pieces = [*(bytes([byte]) for byte in range(256)), b"nu", b"le", b"num"][: size - 6]
        lines = (f"{base64.b64encode(piece).decode()} {rank}\n" for rank, piece in enumerate(pieces))
        Path(f"{prefix}ranks").write_text("".join(lines))
        with Path(f"{prefix}pieces").open("wb") as model:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(Path(text).read_text().split(". ")),
                model_writer=model,
                vocab_size=size + 20,
                byte_fallback=True,
                control_symbols=["<tool>"],
                user_defined_symbols=["length"],
                hard_vocab_limit=False,
                minloglevel=2,
            )


def write_documents():
    """Writes short texts, also as token files and conversations, some too long or malformed."""
    texts = [f"Number {number} " + "and on " * (number % 5) for number in range(60)]
    Path("short").mkdir()
    for number, text in enumerate(texts):
        Path(f"short/{number}.txt").write_text(text)
    for folder, order in (("tokens", 1), ("other_tokens", -1)):
        for part, documents in (("train", texts[:50]), ("validation", texts[50:])):
            encoded = [np.append(ByteTokenizer().encode(text), 0) for text in documents[::order]]
            writer = TokenWriter(Path(folder) / part, ByteTokenizer(), shard_tokens=500)
            writer.append(np.concatenate(encoded), np.cumsum([len(tokens) for tokens in encoded]), 1)
            writer.finish({})
    rows = [json.dumps({"turn": text, "short": text[::-1]}) for text in texts]
    Path("rows").write_text("\n".join([*rows, "broken"]))
    roles = ("system", "user", "assistant", "user", "assistant")
    talks = [{"messages": [{"role": role, "content": f"{role[0]}{n}"} for role in roles]} for n in range(40)]
    for file, order in (("chat", 1), ("other_chat", -1)):
        lines = [*map(json.dumps, talks[::order]), json.dumps({"prompt": "a", "completion": "b" * 200})]
        with_key = json.dumps({"messages": [{"role": "assistant", "content": "c", "a": 1}]})
        Path(file).write_text("\n".join([*lines, *([with_key, "broken"] if file == "chat" else [])]))
    Path("chats").mkdir()
    for file, part in (("a.jsonl", talks[:20]), ("b.log", talks[20:])):
        Path(f"chats/{file}").write_text("\n".join(map(json.dumps, part)))
    for file, end in (("pairs", "!"), ("other_pairs", "?")):
        turns = [[{"role": "user", "content": f"{n}{end}"}] for n in range(40)]
        sides = [[{"role": "assistant", "content": text}] for text in ("yes", "no")]
        lines = [json.dumps({"prompt": turn, "chosen": sides[0], "rejected": sides[1]}) for turn in turns]
        long = json.dumps({"prompt": "a", "chosen": "b" * 200, "rejected": "c"})
        with_key = json.dumps({"chosen": [{"role": "assistant", "content": "c", "a": 1}], "rejected": sides[1]})
        Path(file).write_text("\n".join([*lines, long, *([with_key, "broken"] if file == "pairs" else [])]))
    Path("preferences").mkdir()
    for file, part in (("a.jsonl", lines[:20]), ("b.log", lines[20:])):
        Path(f"preferences/{file}").write_text("\n".join(part))
    for folder in ("templates", "other_templates"):
        Path(folder).mkdir()
        Path(f"{folder}/chat_template.jinja").write_text(TEMPLATE.format(folder))


@ml.config.configurable
class OtherPacking(PackedDocuments):
    """A second packing, because Juniper has only one."""

    def sequences(self, stream, length, seed, separate):
        return super().sequences(stream, length, seed + 1, separate)

    def packed(self, pieces, length):
        return super().packed(Pieces(pieces.starts[::-1], pieces.sizes[::-1]), length)


@ml.config.configurable
class OtherChats(ChatCorpus):
    """A second source of conversations."""

    def conversations(self):
        return [Conversation(str(number), Completion("a", str(number))) for number in range(20)]


@ml.config.configurable
class OtherOptimization(DirectPreferenceOptimization):
    """A second training on preferences, whose reference is one of the runs."""

    def __init__(self):
        super().__init__()
        self.reference = "another_teacher"
        self.source = CheckpointSource(CheckpointReference(Path(self.reference), None, None))

    def guided(self, batch, reference):
        return super().guided(batch, reference)._replace(beta=3.0)


@ml.config.configurable
class OtherPreferences(PreferenceCorpus):
    """A second source of preferences."""

    def preferences(self):
        sides = [[Conversation("", Completion(str(n), answer)) for answer in "ab"] for n in range(40)]
        return [Preference(str(n), *each) for n, each in enumerate(sides)]


class Watched(io.StringIO):
    """Captures the progress of a run, with the number of loader threads and the asynchronous saves."""

    num_loaders = 0
    saves_beside = False

    def write(self, text):
        names = [thread.name for thread in threading.enumerate()]
        self.num_loaders = max(self.num_loaders, sum(name.startswith("data-") for name in names))
        self.saves_beside |= any(name.startswith("checkpoint") for name in names)
        return super().write(text)


@ml.config.configurable
class Rest(ConstantPhase):
    """A phase shorter than the remaining steps, so that each phase can be extended."""


@ml.config.configurable
class OtherBytes(ByteTokenizer):
    """A second tokenizer, to test that the tokenizer can be chosen."""

    def encode(self, text):
        return super().encode(text)[::-1]


@ml.config.configurable
class OtherFiles(TextFiles):
    """A second corpus."""

    def documents(self):
        return [document._replace(text=document.text.upper()) for document in super().documents()]


@ml.config.configurable
class OtherAdamW(AdamW):
    """A second optimizer."""

    def algorithm(self, settings):
        return super().algorithm([{**setting, "peak": 0.1} for setting in settings])


@ml.config.configurable
class OtherCheckpoints(Checkpoints):
    """A second checkpoint policy."""

    def is_due(self, step, num_steps):
        return step == 5


@ml.config.configurable
class OtherValidation(Validation):
    """A second validation schedule."""

    def is_due(self, step, num_steps):
        return step == 5


@functools.cache
def all_configurables() -> list[Configurable]:
    found = [info for name in known_names() for info in candidates(name)]
    return [info for info in found if info.selector.startswith("ml.")]


def bindable(info: Configurable) -> list[ParameterSpec]:
    return [spec for spec in info.parameters.values() if spec.default is not EMPTY]


def is_of_mesh(info: Configurable) -> bool:
    """True for the arrangement of processes, which must change no result; see tests/distributed."""
    return info.selector.startswith("ml.distributed.")


# The mesh is tested in tests/distributed; the cluster is read by plans alone, which tests/training/estimate tests.
ELSEWHERE = {
    ("Trainer", "mesh"),
    ("Trainer", "cluster"),
    ("FromRun", "sha256"),  # any other value is refused
    ("FromHuggingFace", "sha256"),
    ("FromHuggingFace", "may_differ"),
    ("FromRun", "may_differ"),
    ("FromHuggingFace", "sha256"),
    ("FromHuggingFace", "may_differ"),
    ("FromRun", "new_tokens"),  # tests/runs/test_run_tokenizers.py
    ("FromHuggingFace", "new_tokens"),  # tests/interop/test_start_from_hugging_face.py
    ("Distillation", "sha256"),
    ("ChatData", "prepared"),  # tests/data/datasets/test_prepared_chat.py
    ("DirectPreferenceOptimization", "sha256"),
    ("DirectPreferenceOptimization", "reference"),  # tests/training/test_preference.py
}
# Parameters that change no weight in these runs and are part of the result all the same, with the reason.
OBSERVED = {
    ("HuggingFaceTokenizer", "end_of_document"): "the separator of documents, which the texts of this test do not have",
    ("TiktokenTokenizer", "special_tokens"): "other tokens, which the texts of this test do not have",
    ("StochasticMixer", "main"): "the model that the weights make in evaluation",
}
HELD = {"Validation": ("Trainer", "validation")}  # parts of one neutral parameter alone are neutral with it


def is_neutral_or_observed(name: str, parameter: str) -> bool:
    """Returns whether a parameter may change no weight: it is declared so, or has a reason in `OBSERVED`."""
    return is_declared_neutral(*HELD.get(name, (name, parameter))) or (name, parameter) in OBSERVED


CASES = [
    (info.name, spec.name)
    for info in all_configurables()
    if not is_of_mesh(info)
    for spec in bindable(info)
    if (info.name, spec.name) not in ELSEWHERE
]


@functools.cache
def loaded(*bindings: str) -> ml.Config:
    """Loads without the dry run of the model on fake tensors: `what_is_built` takes a step."""
    lines = [line.strip() for text in bindings for line in text.splitlines()]
    return load(bindings=[TINY, *lines], root=_trainer_on_meta, shipped=ml.SHIPPED_CONFIGS)


@functools.lru_cache(maxsize=4)
def built(*bindings: str) -> tuple[Trainer, set[str]]:
    """Builds the trainer of a configuration, without the operative config of `loaded`; finds bindings without effect.

    Raises:
        ConfigError: A value is wrong.
    """
    trainer, unused = trainer_and_unused(
        None, [TINY, *(line.strip() for text in bindings for line in text.splitlines())]
    )
    return trainer, {binding.text(written=True) for binding in unused}


@functools.cache
def without_effect(base: str) -> set[str]:
    """Returns the bindings of a base that others in it disable."""
    return built(base)[1]


@functools.cache
def places(bindings: tuple[str, ...]) -> dict[str, list]:
    """Returns the records of a run by configurable."""
    found: dict[str, list] = {}
    for record in loaded(*bindings).records():
        found.setdefault(record.configurable, []).append(record)
    return found


class Found:
    """The results of an iterator, each computed once and not before it is asked for."""

    def __init__(self, results: Iterator):
        self._results, self._known = results, []

    def __iter__(self):
        for index in itertools.count():
            if index == len(self._known):
                self._known += itertools.islice(self._results, 1)
            if index == len(self._known):
                return
            yield self._known[index]


@functools.cache
def bases_with(name: str) -> Found:
    """Finds bindings of runs that build a configurable: existing bases, or two bases in which it replaces a sibling."""
    (info,) = candidates(name)
    texts = MODELS if info.selector.startswith(MODEL_PACKAGES) else BASES
    direct = [(text,) for text in texts.values() if name in places((text,))]
    direct.sort(key=lambda bindings: -bindings[0].count(f"{name}."))  # those in which it is configured most
    return Found(iter(direct) if direct else itertools.islice(replacements(name), 2))


def replacements(name: str) -> Iterator[tuple[str, ...]]:
    (info,) = candidates(name)
    near = siblings(info)
    neighbours = {other.name for other in all_configurables() if module_of(other) in near}
    for text in BASES.values():
        tried = set()
        for record in itertools.chain.from_iterable(places((text,)).values()):
            taken = (record.configurable, record.parameter, record.value)
            if record.value.startswith("@") and record.value[1:] in neighbours and taken not in tried:
                tried.add(taken)
                binding = f"{record.path}/{record.configurable}.{record.parameter} = @{name}".lstrip("/")
                if is_valid(text, binding) and name in places((text, binding)) and starts(text, binding):
                    yield (text, binding)


def starts(*bindings: str) -> bool:
    try:
        what_is_built(*bindings)
    except (ValueError, TypeError, RuntimeError, AttributeError):
        return False
    except Exception:
        if not dry_run_refuses(*bindings):
            raise
        return False
    return True


def dry_run_refuses(*bindings: str) -> bool:
    try:
        ml.load(bindings=[TINY, *(line.strip() for text in bindings for line in text.splitlines())])
    except ConfigError:
        return True
    return False


def module_of(info: Configurable) -> str:
    return info.selector.rpartition(".")[0]


@functools.cache
def siblings(info: Configurable) -> set[str]:
    """Returns modules with interchangeable configurables: the same module, and modules with the same base class."""
    module = module_of(info)
    bases = set(info.target.__mro__[1:-1]) if isinstance(info.target, type) else set()
    alike = {
        module_of(other)
        for other in all_configurables()
        if isinstance(other.target, type) and bases & set(other.target.__mro__) - {torch.nn.Module}
    }
    return {module, *alike, *(["ml.layers.initialization"] if "initialization" in module else [])}


def is_valid(*bindings: str) -> bool:
    return refusal(*bindings) is None


def refusal(*bindings: str) -> str | None:
    """Returns the error message of a configuration, or None if it is valid."""
    try:
        _, unused = built(*bindings)
        if unused - set().union(*(without_effect(text) for text in bindings if text in BASES.values())):
            loaded(*bindings)  # which knows whether they have a reason
    except ConfigError as error:
        return str(error)
    return None


class Trace(TorchDispatchMode):
    """Records all operations with the shapes and types of their results."""

    def __init__(self):
        super().__init__()
        self.digest = hashlib.sha256()

    def __torch_dispatch__(self, function, kinds, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        first = result[0] if isinstance(result, tuple | list) and result else result
        shown = (tuple(first.shape), first.dtype) if isinstance(first, torch.Tensor) else ()
        self.digest.update(f"{function} {shown}".encode())
        return result


@functools.cache
def what_is_built(*bindings: str) -> tuple:
    """Returns the model, its first step, and the groups of the optimizer."""
    trainer, _ = built(*bindings)
    dataset, teacher, state = trainer.open_data().training, open_teacher(trainer, CPU), trainer.start(CPU)
    compiled = [*("forward" in vars(module) for module in state.model.modules()), state.graphs is not None]
    parameters = [(name, tuple(p.shape), p.dtype, p.requires_grad, digest(p)) for name, p in named(state.model)]
    groups = [(group.lr_scale, group.weight_decay, tuple(group.names)) for group in state.groups]
    torch.manual_seed(0)
    for module in state.model.modules():
        if hasattr(module, "draw"):
            module.draw(torch.Generator().manual_seed(0))
    if any(compiled):
        return compiled, parameters, groups
    batches = trainer.batches(dataset, 1)
    data = [digest(tensor) for batch in batches for tensor in batch.inputs.values()]
    with Trace() as trace:
        result = train_step(state, batches, trainer.precision, trainer.max_grad_norm, CPU, teacher)
    step = (trace.digest.hexdigest(), result.loss.item(), result.grad_norm.item())
    return compiled, parameters, groups, data, dataset.tokenizer.identity, *step


class Left(typing.NamedTuple):
    """The results of a complete run: the last weights, and all that is seen of it besides."""

    weights: list[str]
    seen: tuple


@functools.cache
def what_is_left(*bindings: str) -> Left:
    """Returns the results of a complete run."""
    trainer, _ = built.__wrapped__(*bindings)  # a new one
    with tempfile.TemporaryDirectory() as name:
        run = RunFolder(Path(name) / "run")
        stream = Watched()
        with contextlib.suppress(RunFailure):  # the number of steps shows whether it ended early
            teacher = open_teacher(trainer, CPU)
            train(trainer, trainer.open_data(), run, CPU, teacher=teacher, stream=stream)
        metrics = [{k: v for k, v in record.items() if k not in TIMING} for record in run.metrics()]
        peak = [f"{record['mfu'] / record['tokens_per_second']:.6g}" for record in run.metrics()]
        kept = sorted(path.name for path in run.checkpoints.iterdir())
        watched = [shown(file) for folder in WATCHED for file in sorted((run.path / folder).glob("*"))]
        samples = run.path / "samples.jsonl"
        kept.append(samples.read_text() if samples.exists() else "")
        model = trainer.start(CPU).model
        if (checkpoint := newest_checkpoint(run.checkpoints, print)) is not None:
            read_tensors(checkpoint, {MODEL + name: weight.detach() for name, weight in named_weights(model).items()})
    seen = (json.dumps(metrics), peak, kept, stream.num_loaders, stream.saves_beside, watched)
    return Left([digest(p) for _, p in named(model)], seen)


WATCHED = ("tensorboard", "wandb", "profiles")


def shown(file: Path) -> tuple:
    """Returns the contents of a tracker file without times: of a trace, the kinds of its events."""
    if file.name.startswith("events."):
        return ("events",)
    if file.name.endswith(".json.gz"):
        events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
        return file.name, sorted({(str(event.get("cat")), *sorted(event.get("args", ()))) for event in events})
    if file.suffix == ".txt":
        return ("table", len(file.read_text().splitlines()))
    return file.name, file.read_text()


def named(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    return list(model.named_parameters())


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def other_values(annotation: typing.Any, current: str) -> Iterator[str]:
    """Returns gin texts of values of a type, the most likely valid first."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        for argument in arguments:
            yield from other_values(argument, current)
    elif origin is typing.Annotated:
        yield from other_values(arguments[0], current)
    elif origin is typing.Literal:
        yield from map(repr, arguments)
    elif origin is collections.abc.Callable:
        yield from references(annotation, current)
    elif annotation is type(None):
        yield "None"
    elif annotation is bool:
        yield from ("True", "False")
    elif annotation is int:
        number = ast.literal_eval(current) if current.lstrip("-").isdigit() else 4
        yield from map(str, (2 * number, number + 1, number // 2, 3, 2, 1, 4, 8, 16, 0))
    elif annotation is float:
        number = float(current) if is_number(current) else 1.0
        yield from map(repr, (number / 2, 2.0 * number, 0.25, 0.0, 1.5, 3.0, number + 0.01, 100.0))
    elif annotation is str:
        yield from ("'9h'", "'0.001s'")  # durations
        yield from ("'<tool>'", "'turn'")  # tokens of the tokenizers
        yield from ("'other.txt'", "'another_teacher'", "'another_hub'", "'others.jsonl'", "'*.log'", "'|'", "'(?s:.)'")
        yield from dict.fromkeys(re.findall(r"'\w+'", str(BASES)))  # names of parts in some run
    else:
        yield from other_collections(origin, arguments, current)


def other_collections(origin: typing.Any, arguments: tuple, current: str) -> Iterator[str]:
    """Returns other tuples, lists and dicts: shorter, reversed, and with other elements."""
    if origin in (dict, collections.abc.Mapping):
        pairs = [pair.split(":", 1) for pair in current.strip("{}").split(", ") if ":" in pair]
        for key, value in pairs:
            for other in other_values(arguments[1], value.strip()):
                changed = [(k, other if k == key else v) for k, v in pairs]
                yield "{" + ", ".join(f"{k}: {v}" for k, v in changed) + "}"
        return
    if dict in map(typing.get_origin, arguments[:1] and typing.get_args(arguments[0])):  # weights of a mixture
        yield "[(5, {'a': 3.0, 'b': 1.0})]"
        return
    items = parsed(current) if current[:1] in "([" and "@" not in current else []
    kinds = [kind for kind in arguments if kind is not ...]
    if len(items) > 1:
        yield written(type(items)(items[:1]))
    for index, item in enumerate(items):
        for other in other_values(kinds[index] if len(kinds) == len(items) else kinds[0], repr(item)):
            yield written(type(items)([*items[:index], parsed(other), *items[index + 1 :]]))
    if items:
        yield from map(written, (items[:-1], items[::-1], type(items)([*items, items[-1]])))
    first = next(other_values(kinds[0], ""))
    yield from (f"[{first}]", f"({first},)", "['others.jsonl']", "['a', 'b', 'b']", "['a']", "['aten.mm']")


def parsed(text: str) -> typing.Any:
    return ast.literal_eval(re.sub(r"(%math\.)?\binf\b", "1e999", text))


def written(value: typing.Any) -> str:
    return re.sub(r"\binf\b", "%math.inf", repr(value))


MODEL_PACKAGES = ("ml.layers.", "ml.blocks.", "ml.models.")
KNOWN = ("ml.", f"{__name__}.")  # other tests register configurables that are valid only there


@functools.cache
def all_known() -> list[Configurable]:
    return [info for name in known_names() for info in candidates(name) if info.selector.startswith(KNOWN)]


def references(annotation: typing.Any, current: str) -> Iterator[str]:
    """Returns references: the current one with another learning rate, siblings, and all others that fit."""
    name = current.rpartition("/")[2].lstrip("@")
    here = [info for info in all_configurables() if info.name == name]
    if here and "lr_scale" in here[0].parameters:
        yield f"@other/{name}\nother/{name}.lr_scale = 0.125"
    near = siblings(here[0]) if here else ()
    for info in sorted(all_known(), key=lambda i: (module_of(i) not in near, i.selector.startswith("ml."))):
        if mismatch(Reference((), info), annotation) is None:
            yield f"@{info.name}"


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def changes(name: str, spec: ParameterSpec) -> Iterator[Iterator[Change]]:
    """Returns runs with bindings that change a parameter, in groups of one and of two, those that set it first."""
    setting = [(text,) for text in BASES.values() if f"{name}.{spec.name} =" in text and name in places((text,))]
    bases = itertools.chain(setting, (base for base in bases_with(name) if base not in setting))
    for size in itertools.chain((1,), itertools.repeat(2)):
        few = list(itertools.islice(bases, size))
        if not few:
            return
        in_turn = itertools.zip_longest(*(changes_in(base, name, spec) for base in few))
        yield (change for changes in in_turn for change in changes if change is not None)


def first_tried(
    group: Iterator[tuple[tuple[str, ...], str]], tried: list[str]
) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yields the changes of a group until a dozen values of it are in `tried`."""
    before = len(tried)
    for change in group:
        if len({binding.partition("=")[2] for binding in tried[before:]}) > 12:
            return
        yield change


def changes_in(base: tuple[str, ...], name: str, spec: ParameterSpec) -> Iterator[Change]:
    here = [record for record in places(base)[name] if record.parameter == spec.name]
    current = here[0].value if here else "None"
    path = (here or places(base)[name])[0].path
    for value in dict.fromkeys(other_values(spec.annotation, current)):
        if value != current:
            for scope in dict.fromkeys(("", f"{path}/".lstrip("/"))):
                yield base, f"{scope}{name}.{spec.name} = {value}"


def without_scope(base: tuple[str, ...], binding: str, name: str, parameter: str) -> Change | None:
    """Returns the same change by a binding without a scope, where the run has one place for it; None otherwise."""
    unscoped = binding[binding.index(f"{name}.{parameter} =") :]
    is_alone = sum(record.parameter == parameter for record in places(base)[name]) == 1
    return (base, unscoped) if is_alone and unscoped != binding else None


def test_every_configurable_is_built_somewhere():
    others = [info for info in all_configurables() if not is_of_mesh(info)]
    missing = [info.name for info in others if bindable(info) and not any(bases_with(info.name))]
    assert not missing


@pytest.mark.parametrize(("name", "parameter"), CASES, ids=[".".join(case) for case in CASES])
def test_a_parameter_has_an_effect(name, parameter):
    (info,) = candidates(name)
    tried: list[str] = []
    ineffective: set[Change] = set()
    observed: list[str] = []  # bindings that change what is seen of a run alone
    failure = None
    groups = changes(name, info.parameters[parameter])
    for base, binding in itertools.chain.from_iterable(first_tried(group, tried) for group in groups):
        if without_scope(base, binding, name, parameter) in ineffective:
            continue
        if reason := refusal(*base, binding):
            if f"`{parameter}`" in reason:
                return  # it would change the purpose of the run, which other parts check
            continue
        try:
            if what_is_built(*base, binding) != what_is_built(*base):
                return
            ours, theirs = what_is_left(*base, binding), what_is_left(*base)
            if ours.weights != theirs.weights:
                return
            if ours != theirs:
                if is_neutral_or_observed(name, parameter):
                    return
                observed.append(binding)
        except DataError as error:
            failure = error
            if typing.get_origin(info.parameters[parameter].annotation) is typing.Literal:
                return  # it stops on input that another reader accepts
            continue
        except (ValueError, TypeError, RuntimeError, AttributeError, NotImplementedError) as error:
            failure = error  # the reference matches the signature but not its use
            continue
        except Exception as error:  # such as a KeyError in such a use
            if not dry_run_refuses(*base, binding):
                raise
            failure = error
            continue
        tried.append(binding)
        ineffective.add((base, binding))
    assert not observed, f"{name}.{parameter} changes no weight and is not declared neutral: {observed}"
    assert tried, f"no other value of {name}.{parameter} is valid; the last one that was: {failure!r}"
    pytest.fail(f"{name}.{parameter} changes nothing: tried {tried}")


def test_a_parameter_that_is_ignored_is_found(monkeypatch):
    """Tests the test itself: an option that a layer accepts and ignores."""
    from ml.layers import Attention

    monkeypatch.setattr(Attention, "soft_cap", property(lambda self: None, lambda self, value: None), raising=False)
    monkeypatch.setitem(globals(), "bases_with", lambda name: [(MODELS["plain"],), (RUNS["packed"],)])  # two are enough
    monkeypatch.setitem(globals(), "other_values", lambda annotation, current: iter(("3.0",)))  # and one value
    for cached in (built, what_is_built, what_is_left):
        cached.cache_clear()
    try:
        with pytest.raises(pytest.fail.Exception, match=r"Attention\.soft_cap changes nothing"):
            test_a_parameter_has_an_effect("Attention", "soft_cap")
    finally:
        for cached in (built, what_is_built, what_is_left):
            cached.cache_clear()
