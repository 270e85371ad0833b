"""Import of a random Hugging Face folder, against `safetensors.torch.load_file`: python benchmarks/import_folder.py

Writes a Llama of about `--gigabytes` in two files, and reads it in new processes: the weights by the library, which
maps the files into memory, with a copy of each tensor; and the model by Juniper, with the hash of all tensors that a
run records and without it. Times are of reading alone, with the files in the page cache, and memory is the peak of the
whole process, imports included.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

_HIDDEN, _INTERMEDIATE, _VOCABULARY = 2048, 5632, 32_000
_PROGRAMS = {
    "load_file, each tensor copied": """
import safetensors.torch
from pathlib import Path
begun = time.perf_counter()
copied = {}
for file in sorted(Path(folder).glob("*.safetensors")):
    copied |= {name: tensor.clone() for name, tensor in safetensors.torch.load_file(file).items()}
""",
    "the model": """
import ml
opened = ml.open_run(folder)
opened.config
opened._trainer
begun = time.perf_counter()
model = opened.build()
""",
    "the model and the hash": """
import ml
opened = ml.open_run(folder)
opened.config
opened._trainer
begun = time.perf_counter()
opened._folder.sha256()
model = opened.build()
""",
}
_REPORT = """
import json
import resource
seconds = time.perf_counter() - begun
print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write the checkpoint; a temporary folder by default")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        size = write_checkpoint(Path(name), arguments.gigabytes * 1e9)
        print(f"{size / 1e9:.2f} GB of float32 in 2 files")
        found: dict[str, list[tuple[float, int]]] = {what: [] for what in _PROGRAMS}
        for _ in range(arguments.rounds):
            for what, program in _PROGRAMS.items():
                found[what].append(run(program, name))
        expected = statistics.median(seconds for seconds, _ in next(iter(found.values())))
        for what, rounds in found.items():
            seconds, peak = statistics.median(one for one, _ in rounds), max(one for _, one in rounds)
            print(
                f"{what}: {seconds:.2f} s, {expected / seconds:.2f} of the speed; peak {peak / size:.3f} of the bytes"
            )


def run(program: str, folder: str) -> tuple[float, int]:
    """Returns the seconds and the peak bytes of a program in a new process."""
    text = f"import sys, time\nfolder = sys.argv[1]\n{program}{_REPORT}"
    done = subprocess.run([sys.executable, "-c", text, folder], check=True, capture_output=True, text=True)
    seconds, peak = json.loads(done.stdout)
    return seconds, peak


def write_checkpoint(folder: Path, num_bytes: float) -> int:
    """Writes a random checkpoint of a Llama of about a size; returns the bytes of its tensors."""
    block = {
        **{f"self_attn.{name}_proj": (_HIDDEN, _HIDDEN) for name in "qkvo"},
        **{f"mlp.{name}_proj": (_INTERMEDIATE, _HIDDEN) for name in ("gate", "up")},
        "mlp.down_proj": (_HIDDEN, _INTERMEDIATE),
        **dict.fromkeys(("input_layernorm", "post_attention_layernorm"), (_HIDDEN,)),
    }
    outer = {"model.embed_tokens": (_VOCABULARY, _HIDDEN), "lm_head": (_VOCABULARY, _HIDDEN), "model.norm": (_HIDDEN,)}
    bytes_of_block = sum(4 * torch.Size(shape).numel() for shape in block.values())
    rest = num_bytes - sum(4 * torch.Size(shape).numel() for shape in outer.values())
    num_blocks = max(1, round(rest / bytes_of_block))
    shapes = {f"model.layers.{i}.{name}": shape for i in range(num_blocks) for name, shape in block.items()}
    names = [*shapes, *outer]
    shapes |= outer
    places, total = {}, 0
    for index, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :])):
        file = f"model-{index + 1:05}-of-00002.safetensors"
        tensors = {f"{name}.weight": torch.randn(shapes[name]) for name in part}
        save_file(tensors, folder / file, {"format": "pt"})
        places |= dict.fromkeys(tensors, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": _HIDDEN, "num_attention_heads": 32,
        "num_key_value_heads": 32, "intermediate_size": _INTERMEDIATE, "num_hidden_layers": num_blocks,
        "vocab_size": _VOCABULARY, "hidden_act": "silu", "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        "max_position_embeddings": 2048, "rope_theta": 10000.0,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return total


if __name__ == "__main__":
    main()
