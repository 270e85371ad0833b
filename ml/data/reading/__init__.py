"""Text reading shared by all kinds of data: file discovery, decompression, decoding, JSON lines, held-out splits."""
