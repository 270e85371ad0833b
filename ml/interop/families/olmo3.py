"""OLMo 3: OLMo 2 with a window in most blocks."""

from ml.interop.common import (
    attention,
    attention_bias,
    gated_mlp,
    mlp_bias,
    query_key_norm,
    rms_norm,
    sizes,
)
from ml.interop.families.olmo2 import OLMO_2, normalized_branches
from ml.interop.family import Family
from ml.interop.fields import Set
from ml.interop.kinds import FULL, SLIDING
from ml.interop.rotary import Rope
from ml.interop.windows import windows
from ml.layers import Attention

OLMO_3 = Family(
    "OLMo 3",
    {"olmo3": "Olmo3ForCausalLM"},
    (
        *sizes(),
        windows(4, Rope(5e5, inside=SLIDING, scaled=False), Rope(5e5, inside=FULL)),
        *attention(),
        attention_bias(),
        *query_key_norm(),
        *rms_norm(1e-5),
        *normalized_branches(),
        Set(Attention, "norm_over", "all_heads"),
        *gated_mlp(),
        mlp_bias(),
    ),
    OLMO_2.tensors,
)

FAMILIES = (OLMO_3,)
