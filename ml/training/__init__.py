"""Training: the trainer, what it is made of, and what it leaves behind."""

from ml.training.checkpoints import Checkpoints
from ml.training.distillation import Distillation
from ml.training.errors import RunError, RunFailure
from ml.training.initial import Initial
from ml.training.loop import Outcome, train
from ml.training.memory_snapshot import MemorySnapshot
from ml.training.norms import Norms
from ml.training.optimizers import SGD, Adafactor, AdamW, Lion, Muon
from ml.training.precision import Float32, MixedBFloat16, PureBFloat16
from ml.training.profiler import Profiler
from ml.training.run_folder import RunFolder
from ml.training.samples import Samples
from ml.training.schedules import ConstantSchedule, CosineSchedule, LinearSchedule, PhasedSchedule, WarmupStableDecay
from ml.training.skip_step import SkipStep
from ml.training.trackers import TensorBoard, Tracker, WeightsAndBiases
from ml.training.trainer import Trainer
from ml.training.validation import Validation
from ml.training.weight_average import ExponentialMovingAverage

__all__ = [
    "SGD",
    "Adafactor",
    "AdamW",
    "Checkpoints",
    "ConstantSchedule",
    "CosineSchedule",
    "Distillation",
    "ExponentialMovingAverage",
    "Float32",
    "Initial",
    "LinearSchedule",
    "Lion",
    "MemorySnapshot",
    "MixedBFloat16",
    "Muon",
    "Norms",
    "Outcome",
    "PhasedSchedule",
    "Profiler",
    "PureBFloat16",
    "RunError",
    "RunFailure",
    "RunFolder",
    "Samples",
    "SkipStep",
    "TensorBoard",
    "Tracker",
    "Trainer",
    "Validation",
    "WarmupStableDecay",
    "WeightsAndBiases",
    "train",
]
