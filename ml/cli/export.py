"""Write the weights of a run alone, or the model as a Hugging Face folder."""

import argparse
from pathlib import Path

from ml.cli.memory_size import parse_memory_size
from ml.cli.path_argument import to_path
from ml.cli.run_arguments import add_run_argument, add_step_argument
from ml.errors import UserError

_DTYPES = ("float32", "bfloat16", "float16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_argument(parser)
    parser.add_argument(
        "file",
        type=to_path,
        help="what to write: a file such as weights.safetensors, which is replaced, or with --format=hf a new folder",
    )
    parser.add_argument(
        "--format",
        choices=["safetensors", "hf", "peft"],
        default="safetensors",
        help="safetensors: the weights under their names here; hf: a folder for transformers; peft: the adapters",
    )
    add_step_argument(parser)
    parser.add_argument("--average", action="store_true", help="the running average of the weights, not the last ones")
    parser.add_argument("--merge", action="store_true", help="hf: merge adapters into the weights")
    parser.add_argument("--dtype", choices=_DTYPES, help="hf: dtype of the weights; by default that of the model")
    parser.add_argument(
        "--base", help="peft: the model without adapters; by default the folder that the run started from"
    )
    parser.add_argument("--shard_size", type=_size, help="hf: most bytes of a file, such as 2GB; by default 5GB")


def run(arguments: argparse.Namespace) -> None:
    """Writes the file or folder and reports its content."""
    from ml.api import open_run

    if not arguments.file.parent.is_dir():
        raise UserError(f"there is no folder {arguments.file.parent}")
    for name, format in {"merge": "hf", "dtype": "hf", "shard_size": "hf", "base": "peft"}.items():
        if getattr(arguments, name) and arguments.format != format:
            raise UserError(f"--{name} goes with --format={format}")
    opened = open_run(arguments.run, trust_code=arguments.trust_run_code)
    if arguments.format == "hf":
        import torch

        lines = opened.export_hugging_face(
            arguments.file,
            arguments.step,
            average=arguments.average,
            merge=arguments.merge,
            dtype=None if arguments.dtype is None else getattr(torch, arguments.dtype),
            shard_size=arguments.shard_size,
        )
        print("\n".join([*lines, f"written to {arguments.file}"]))
        return
    if arguments.format == "peft":
        lines = opened.export_adapter(arguments.file, arguments.step, average=arguments.average, base=arguments.base)
        print("\n".join([*lines, f"written to {arguments.file}"]))
        return
    if Path(arguments.file).is_dir():
        raise UserError(f"{arguments.file} is a folder, and --format={arguments.format} writes a file")
    count = opened.export(arguments.file, arguments.step, average=arguments.average)
    print(f"{count} tensors, {arguments.file.stat().st_size:,} bytes: {arguments.file}")


def _size(text: str) -> int:
    size = parse_memory_size(text)
    if size is None:
        raise argparse.ArgumentTypeError(f"must be a size such as 2GB, not {text!r}")
    return size
