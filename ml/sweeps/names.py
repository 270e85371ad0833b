"""The names of the members of a sweep, which are those of their folders: what was chosen, fit for any shell."""

import hashlib
import re
from collections.abc import Sequence

_LONGEST = 120
_QUOTED = re.compile(r"""[@'"\[\](){}]| (?=['"])""")  # what only gin needs around names
_UNFIT = re.compile(r"[^A-Za-z0-9._=,+-]+")


def name_of(parts: Sequence[str]) -> str:
    """`learning_rate=0.001,warmup_steps=10` from its parts; what a shell or a file system may not like becomes `_`."""
    name = ",".join(_UNFIT.sub("_", _QUOTED.sub("", part).replace("/", ".")).strip("_") for part in parts)
    name = name.lstrip(".-") or "member"
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 9]}-{_digest(parts)}"


def names_of(members: Sequence[Sequence[str]]) -> list[str]:
    """A name for each member, all different: those that would be the same get a number made from all of their text."""
    names = [name_of(parts) for parts in members]
    folded = [name.lower() for name in names]  # some file systems do not tell case
    return [
        f"{name}-{_digest(parts)}" if folded.count(name.lower()) > 1 else name
        for name, parts in zip(names, members, strict=True)
    ]


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]
