"""Mamba: selective state spaces without an MLP."""

from typing import Any

from ml.interop.common import ACTIVATIONS
from ml.interop.family import Family
from ml.interop.fields import Bias, Field, Part
from ml.interop.state_spaces import KEPT_OF_STATE_SPACES, STATE_SPACE_TENSORS, STORED_MIXER, rank_of_steps, state_space
from ml.interop.tensors import Concatenated, row
from ml.layers import Linear, Mamba


def _rank(value: Any) -> Any:
    return None if value == "auto" else value


MAMBA = Family(
    "Mamba",
    {"mamba": "MambaForCausalLM"},
    (
        *state_space(Mamba, tied=True),
        Field("time_step_rank", Mamba, "dt_rank", default=rank_of_steps, to=_rank),
        Bias(("x", "gate", "output"), Linear, Mamba, "use_bias", False),
        Part("hidden_act", Mamba, "activation", ACTIVATIONS, "silu"),
    ),
    (
        *STATE_SPACE_TENSORS,
        *(
            row(
                f"{STORED_MIXER}.in_proj.{kind}",
                f"{{block}}.mixer.x.{kind}",
                f"{{block}}.mixer.gate.{kind}",
                layout=Concatenated(),
            )
            for kind in ("weight", "bias")
        ),
        row(
            f"{STORED_MIXER}.x_proj.weight",
            *(f"{{block}}.mixer.{name}.weight" for name in ("dt_down", "B", "C")),
            layout=Concatenated(),
        ),
        row(f"{STORED_MIXER}.dt_proj.weight", "{block}.mixer.dt.weight"),
        row(f"{STORED_MIXER}.dt_proj.bias", "{block}.mixer.dt_bias"),
    ),
    KEPT_OF_STATE_SPACES,
)

FAMILIES = (MAMBA,)
