"""Runs in Python: start one, open its folder, generate text with it, evaluate it. Importing this imports no torch."""

from ml.runs.run import Run
from ml.runs.teacher import open_teacher

__all__ = ["Run", "open_teacher"]
