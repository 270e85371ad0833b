"""Falcon-Mamba: Mamba with norms without weights of the step, B and C."""

from ml.interop.families.mamba import MAMBA
from ml.interop.family import Family
from ml.interop.fields import Field, Set
from ml.layers import FixedRMSNorm, Mamba

FALCON_MAMBA = Family(
    "Falcon-Mamba",
    {"falcon_mamba": "FalconMambaForCausalLM"},
    (
        *MAMBA.rows,
        *(Set(Mamba, name, FixedRMSNorm) for name in ("dt_norm", "B_norm", "C_norm")),
        Field("mixer_rms_eps", FixedRMSNorm, "epsilon", default=1e-6),
    ),
    MAMBA.tensors,
    MAMBA.kept,
)

FAMILIES = (FALCON_MAMBA,)
