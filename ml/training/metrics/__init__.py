"""Metrics of a step: throughput, norms, router load, and the progress display."""
