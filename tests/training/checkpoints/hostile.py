"""Hostile checkpoints: manifest and marker fit the content, so that only the content is wrong."""

import hashlib
import io
import json
import pickle
import zipfile
from pathlib import Path

import torch


def reseal(checkpoint):
    """Writes manifest and marker again, so that the checkpoint counts as undamaged."""
    names = [file.name for file in checkpoint.iterdir() if file.name not in ("manifest.json", "COMMITTED")]
    contents = {name: (checkpoint / name).read_bytes() for name in names}
    files = {name: {"size": len(c), "sha256": hashlib.sha256(c).hexdigest()} for name, c in contents.items()}
    manifest = json.dumps({"files": files}).encode()
    (checkpoint / "manifest.json").write_bytes(manifest)
    (checkpoint / "COMMITTED").write_text(f"manifest.json {hashlib.sha256(manifest).hexdigest()}\n")


class Calls:
    """An object whose unpickling calls a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def touching(canary):
    """An object whose unpickling makes a file."""
    return Calls(Path.touch, Path(canary))


def index_of(checkpoint):
    """torch's index, which this process trusts."""
    return pickle.loads((checkpoint / ".metadata").read_bytes())


def write_index(checkpoint, index):
    (checkpoint / ".metadata").write_bytes(pickle.dumps(index))


def archive_of(value, compression=zipfile.ZIP_STORED):
    """An archive of torch.save, with or without compression."""
    plain, packed = io.BytesIO(), io.BytesIO()
    torch.save(value, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", compression) as target:
        for record in source.infolist():
            target.writestr(record.filename, source.read(record))
    return packed.getvalue()
