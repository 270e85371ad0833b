"""Datasets that the trainer reads: training batches and a held-out split."""
