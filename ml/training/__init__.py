"""Training: the trainer, what it is made of, and what it leaves behind."""

from ml.training.checkpoints import Checkpoints
from ml.training.distillation import Distillation
from ml.training.errors import RunError, RunFailure
from ml.training.loop import Outcome, train
from ml.training.optimizers import AdamW
from ml.training.precision import Float32, MixedBFloat16, PureBFloat16
from ml.training.run_folder import RunFolder
from ml.training.samples import Samples
from ml.training.schedules import ConstantSchedule, CosineSchedule, LinearSchedule, WarmupStableDecay
from ml.training.trainer import Trainer
from ml.training.validation import Validation

__all__ = [
    "AdamW",
    "Checkpoints",
    "ConstantSchedule",
    "CosineSchedule",
    "Distillation",
    "Float32",
    "LinearSchedule",
    "MixedBFloat16",
    "Outcome",
    "PureBFloat16",
    "RunError",
    "RunFailure",
    "RunFolder",
    "Samples",
    "Trainer",
    "Validation",
    "WarmupStableDecay",
    "train",
]
