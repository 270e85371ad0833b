"""Configurations and models from gin files. Importing this imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ml import config as configuration
from ml.config import Bindings, Config, ImportedValue

if TYPE_CHECKING:
    import torch

    from ml.models import LanguageModel
    from ml.training import Trainer

_PACKAGE = Path(__file__).parent
_BESIDE = _PACKAGE.parent / "configs"

# In a checkout `configs/` stands beside the package, in an installed package inside it.
SHIPPED_CONFIGS = _BESIDE if (_BESIDE / "base.gin").is_file() else _PACKAGE / "shipped_configs"


def load(
    gin_files: str | Path | Sequence[str | Path] = (),
    bindings: Bindings = (),
    *,
    search_path: Sequence[str | Path] = (),
    imported: Iterable[ImportedValue] = (),
    allow_unused_bindings: bool = False,
    flags: Sequence[tuple[str, str]] = (),
    trust_code: bool = False,
) -> Config:
    """Loads and checks the configuration of a run.

    Args:
        gin_files: names of gin files, found as given, in the working folder, in `search_path`, among the shipped ones.
        bindings: gin statements that come after the files, `["Linear.bias = False"]`; or Python values by their keys,
            `{"Linear.bias": False, "block_3/DecoderBlock.mixer": Mamba2}`.
        search_path: more folders in which files are looked for.
        imported: values of a pretrained checkpoint; weaker than any file or binding.
        allow_unused_bindings: makes bindings that have no effect warnings instead of errors.
        flags: gin statements of other flags, each with the name of its flag; read between the files and `bindings`.
        trust_code: Executes the copy of custom modules in a run folder, if a file is the operative config of a run.

    Returns:
        A value: two of them live in one process, and building from one never changes the other.

    Raises:
        ConfigError: with everything that is wrong, in one report.
    """
    import ml.interop.from_hugging_face  # noqa: F401
    from ml.training.rehearsal import rehearse  # these import everything that a file can name

    return configuration.load(
        gin_files,
        bindings,
        root=_trainer_on_meta,
        check=rehearse,
        search_path=search_path,
        shipped=SHIPPED_CONFIGS,
        imported=imported,
        allow_unused_bindings=allow_unused_bindings,
        flags=flags,
        trust_code=trust_code,
    )


def build(config: Config, device: str | torch.device = "cpu") -> LanguageModel:
    """Builds the model of a configuration with its initial weights: `model(tokens)` gives logits (B, T, V).

    The weights depend on the seed of the configuration and on the name of each parameter, on nothing else.
    """
    import torch

    return build_trainer(config).allocate(torch.device(device)).train()


def build_trainer(config: Config) -> Trainer:
    """Builds everything that a run needs; the model is on the meta device until the trainer starts."""
    return config.build(_trainer_on_meta)


def _trainer_on_meta() -> Trainer:
    import torch

    from ml.training import Trainer

    with torch.device("meta"):
        return Trainer()
