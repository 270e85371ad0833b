"""Evaluation: validation loss, samples, scoring of texts, and the Language Model Evaluation Harness."""
