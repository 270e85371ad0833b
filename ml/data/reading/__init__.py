"""Reading of text for all kinds of data: finding files, decompressing, decoding, JSON lines, hold-out."""
