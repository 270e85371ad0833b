"""Trackers: metrics of a run in TensorBoard and Weights & Biases."""

from ml.training.trackers.tensorboard import TensorBoard
from ml.training.trackers.tracker import Tracker
from ml.training.trackers.tracking import Tracking
from ml.training.trackers.weights_and_biases import WeightsAndBiases

__all__ = ["TensorBoard", "Tracker", "Tracking", "WeightsAndBiases"]
