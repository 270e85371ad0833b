"""Fixed-length sequences and batches drawn from streams of tokens."""
