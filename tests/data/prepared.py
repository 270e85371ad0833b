"""Small prepared folders, written without `prepare`."""

from pathlib import Path

import numpy as np

from ml.data import ByteTokenizer
from ml.data.token_files.writing import TokenWriter


def write_folder(folder: Path, documents: list[str], tokenizer=None, shard_tokens: int = 1000) -> Path:
    """Writes a prepared folder of `documents`, each followed by a zero byte."""
    tokenizer = tokenizer or ByteTokenizer()
    encoded = [np.append(tokenizer.encode(text), tokenizer.end_of_document) for text in documents]
    writer = TokenWriter(folder, tokenizer, shard_tokens)
    tokens = np.concatenate([np.zeros(0, dtype=np.uint8), *encoded])
    writer.append(tokens, np.cumsum([len(part) for part in encoded]), sum(len(text.encode()) for text in documents))
    counts = ("sources", "source_bytes", "empty_documents", "skipped_rows", "invalid_utf8", "zero_characters")
    writer.finish(dict.fromkeys(counts, 0))
    return folder
