"""Facts in the head comments of recipes, recomputed from their runs."""

import re

from ml.api import build_trainer
from ml.models.flops import flops_per_token
from ml.models.summary import memory_of_model, size_text
from ml.training.summary import memory_of_training

FACTS = ("parameters", "tokens", "memory", "hardware", "compute", "tokenizer")
H100_FLOPS = 989.5e12  # bfloat16, dense: NVIDIA's data sheet of the H100 SXM
UTILIZATION = 0.4


def stated(text: str) -> dict[str, str]:
    """Returns the facts in the head comment of a gin file: `# name      value`."""
    head = text.split("\n\n")[0]
    return dict(re.findall(rf"^# ({'|'.join(FACTS)}) +(.+)$", head, re.MULTILINE))


def computed(config) -> dict[str, str]:
    """Returns the facts of a configuration, in the format of the head comments."""
    trainer = build_trainer(config)
    memory = sum({**memory_of_model(trainer.model), **memory_of_training(trainer)}.values())
    step = trainer.batch_size * trainer.sequence_length
    tokens = trainer.num_steps * step
    flops = flops_per_token(trainer.model, trainer.sequence_length) * tokens
    hours = flops / (UTILIZATION * H100_FLOPS) / 3600
    time = f"{hours:.1f} hours" if hours < 24 else f"{hours / 24:.1f} days"
    return {
        "parameters": rounded(sum(parameter.numel() for parameter in trainer.model.parameters())),
        "tokens": f"{rounded(tokens)} in {trainer.num_steps:,} steps of {step:,}",
        "memory": f"{size_text(memory)} without activations",
        "compute": f"{flops:.1e} FLOPs, {time} at {UTILIZATION:.0%} of an H100's peak".replace("e+", "e"),
    }


def rounded(count: int) -> str:
    """Returns a number with three significant digits, in words."""
    for unit, size in (("billion", 1e9), ("million", 1e6), ("thousand", 1e3)):
        if count >= 0.9995 * size:
            value = count / size
            return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}"
    return str(count)
