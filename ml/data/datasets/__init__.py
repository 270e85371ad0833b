"""Datasets that the trainer reads: batches to train on and a held-out part."""
