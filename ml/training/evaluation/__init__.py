"""What a trained model is worth, and what it writes: scores of texts, continuations, and benchmarks."""
