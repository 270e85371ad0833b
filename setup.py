"""Installs Juniper, a gin-configured trainer for modular language models."""

import runpy
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
SHIPPED_CONFIGS = "ml.shipped_configs"

EXTRAS = {
    "chat": ["jinja2>=3.1.6"],
    "images": ["pillow>=10.0"],
    "tokenizers": ["sentencepiece>=0.2", "tiktoken>=0.7", "tokenizers>=0.20"],
    "parquet": ["pyarrow>=15.0"],
    "zstandard": ["zstandard>=0.22; python_version < '3.14'"],
    "tensorboard": ["tensorboard>=2.16"],
    "wandb": ["wandb>=0.17"],
    "plot": ["matplotlib>=3.8"],
    "harness": ["lm-eval>=0.4.8"],
}
# Libraries for CUDA, which `all` omits: they are of no use without a GPU, and mamba-ssm needs CUDA's compiler.
CUDA_EXTRAS = {"fla": ["fla-core>=0.6"], "mamba": ["mamba-ssm>=2.2"]}
ALL = sorted(requirement for extra in EXTRAS.values() for requirement in extra)

setup(
    name="juniper-trainer",
    version=runpy.run_path(str(ROOT / "ml" / "version.py"))["__version__"],
    description="A PyTorch trainer for modular language models, configured with gin",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The Juniper authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    # `configs/` is at the top of the repository and is installed inside the package.
    packages=[*find_packages(include=["ml", "ml.*"]), SHIPPED_CONFIGS],
    package_dir={SHIPPED_CONFIGS: "configs"},
    package_data={"ml": ["py.typed"], "ml.layers.native": ["*.cpp", "*.h"], SHIPPED_CONFIGS: ["**/*.gin", "**/*.toml"]},
    py_modules=["train"],
    entry_points={"console_scripts": ["juniper = ml.cli.verbs:main"]},
    install_requires=[
        "torch>=2.11",
        "gin-config==0.5.0",  # ml/config/gin_internals.py uses a few private names
        "absl-py>=2.0",
        "numpy>=1.26",
        "safetensors>=0.4.3",
    ],
    extras_require={
        **EXTRAS,
        **CUDA_EXTRAS,
        "all": ALL,
        "test": [
            *ALL,
            "hypothesis>=6.100",
            "pytest>=8.0",
            "peft>=0.18",
            "pytest-xdist>=3.5",
            "scipy>=1.11",
            "transformers>=5.0",
        ],
        "lint": ["codespell>=2.4", "mypy>=2.0", "ruff>=0.15"],
    },
)
