"""Labels of runs in a legend, from the differences between their configurations."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ml.errors import UserError

_LONGEST_LABEL = 64
_LONGEST_VALUE = 32


class Setting(NamedTuple):
    """A value in an operative config, as gin text, and whether a user set it."""

    value: str
    is_explicit: bool


def label_runs(folders: Sequence[Path]) -> list[str]:
    """Returns a distinct label for each run, from the values in which its configuration differs.

    Runs with equal configurations are labeled by their folders.

    Raises:
        UserError: An operative config cannot be read.
    """
    labels = label_configs([_read(folder) for folder in folders])
    names = [folder.name for folder in map(Path.resolve, folders)]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    shared = {label for label in labels if labels.count(label) > 1 or not label}
    return [
        shorten(label if label not in shared else f"{label} ({name})" if label else name, _LONGEST_LABEL)
        for label, name in zip(labels, names, strict=True)
    ]


def label_configs(operatives: Sequence[str]) -> list[str]:
    """Returns the differing values of each operative config, such as `learning_rate=0.001  mixer=Mamba2`.

    Labels of equal configs are equal. A label has all differing values that a user set and that every run has. Other
    values, such as options of a component that only some runs have, are added only to distinguish two runs or to
    shorten the label.
    """
    configs = [settings(text) for text in operatives]
    ranked = _differing(configs)
    chosen = [key for rank, key in ranked if rank == 0]
    chosen += _refining([key for rank, key in ranked if rank > 0], configs, chosen)
    labels = _labels(chosen, configs)
    if max(map(len, labels), default=0) > _LONGEST_LABEL:
        labels = _labels(_refining([key for _, key in ranked], configs, []), configs)
    return labels


def settings(operative: str) -> dict[str, Setting]:
    """Returns the values of an operative config by key, `scope/Name.parameter`; later layers override earlier ones."""
    found: dict[str, Setting] = {}
    is_explicit = False
    for line in operative.splitlines():
        key, equals, value = line.partition(" = ")
        if key == "juniper.layer":
            is_explicit = value not in ("'default'", "'parent'", "'imported'")
        elif equals and not line.startswith("#") and value != "%juniper.left_out":
            found[key] = Setting(value, is_explicit)
    return found


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """Returns the shortest unique suffix of each key: `learning_rate`, or `AdamW.learning_rate`.

    A key with a scope is kept whole, since `bias` alone would be unclear: `query/Linear.bias`.
    """
    endings = {key: [key] if "/" in key else [key.rpartition(".")[2], key] for key in keys}
    counts = Counter(ending for found in endings.values() for ending in dict.fromkeys(found))
    return {key: next(ending for ending in found if counts[ending] == 1) for key, found in endings.items()}


def shorten(text: str, longest: int) -> str:
    """Returns a text, with its middle omitted if it is too long."""
    if len(text) <= longest:
        return text
    tail = (longest - 1) // 2
    return f"{text[: longest - 1 - tail]}…{text[-tail:]}"


def _differing(configs: Sequence[dict[str, Setting]]) -> list[tuple[int, str]]:
    """The keys whose values differ, with a rank: 0 set by a user and there in every run, 1 set by a user, 2 others."""
    ranked = []
    for key in dict.fromkeys(key for config in configs for key in config):
        found = [config.get(key) for config in configs]
        if len({setting and setting.value for setting in found}) > 1:
            is_explicit = any(setting.is_explicit for setting in found if setting)
            ranked.append((0 if is_explicit and None not in found else 1 if is_explicit else 2, key))
    return sorted(ranked, key=lambda pair: pair[0])


def _refining(keys: Iterable[str], configs: Sequence[dict[str, Setting]], chosen: Sequence[str]) -> list[str]:
    """The `keys` that distinguish runs which `chosen` and the keys before them do not."""

    def num_kinds(keys: Sequence[str]) -> int:
        return len({tuple(config[key].value if key in config else None for key in keys) for config in configs})

    found: list[str] = []
    for key in keys:
        if num_kinds([*chosen, *found, key]) > num_kinds([*chosen, *found]):
            found.append(key)
    return found


def _labels(keys: Sequence[str], configs: Sequence[dict[str, Setting]]) -> list[str]:
    short = short_keys(keys)

    def text(key: str, config: dict[str, Setting]) -> str:
        if key not in config:
            return f"without {short[key]}"
        return f"{short[key]}={shorten(config[key].value.removeprefix('@'), _LONGEST_VALUE)}"

    return ["  ".join(text(key, config) for key in keys) for config in configs]


def _read(folder: Path) -> str:
    path = folder / "operative_config.gin"
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
