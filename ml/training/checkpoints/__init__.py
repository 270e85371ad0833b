"""Checkpoints: saving, verifying and reading the state of a run."""
