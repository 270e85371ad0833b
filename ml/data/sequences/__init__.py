"""Fixed-length sequences and batches, sampled from streams of tokens."""
