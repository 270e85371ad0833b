"""Training: the trainer, its components, and the files of a run."""

from ml.training.checkpoints.from_run import FromRun
from ml.training.checkpoints.initial_weights import InitialWeights, StartingPoint
from ml.training.checkpoints.policy import Checkpoints
from ml.training.distillation import Distillation
from ml.training.errors import RunError, RunFailure
from ml.training.evaluation.samples import Samples
from ml.training.evaluation.validation import Validation
from ml.training.loop import Outcome, TrainLoop, train
from ml.training.metrics.norms import Norms
from ml.training.optimizers import SGD, Adafactor, AdamW, Lion, Muon
from ml.training.optimizers.skip_step import SkipStep
from ml.training.optimizers.weight_average import ExponentialMovingAverage
from ml.training.precision import Float32, MixedBFloat16, PureBFloat16
from ml.training.preference import DirectPreferenceOptimization
from ml.training.profiling.memory_snapshot import MemorySnapshot
from ml.training.profiling.profiler import Profiler
from ml.training.run_data import RunData
from ml.training.run_folder import RunFolder
from ml.training.schedules import ConstantSchedule, CosineSchedule, LinearSchedule, PhasedSchedule, WarmupStableDecay
from ml.training.trackers import TensorBoard, Tracker, WeightsAndBiases
from ml.training.trainer import Trainer

__all__ = [
    "SGD",
    "Adafactor",
    "AdamW",
    "Checkpoints",
    "ConstantSchedule",
    "CosineSchedule",
    "DirectPreferenceOptimization",
    "Distillation",
    "ExponentialMovingAverage",
    "Float32",
    "FromRun",
    "InitialWeights",
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
    "RunData",
    "RunError",
    "RunFailure",
    "RunFolder",
    "Samples",
    "SkipStep",
    "StartingPoint",
    "TensorBoard",
    "Tracker",
    "TrainLoop",
    "Trainer",
    "Validation",
    "WarmupStableDecay",
    "WeightsAndBiases",
    "train",
]
