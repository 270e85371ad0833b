"""Evaluation: validation loss, samples, scoring of texts, and the LM Evaluation Harness."""
