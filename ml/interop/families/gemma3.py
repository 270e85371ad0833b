"""Gemma 3, text: Gemma 2 with norms of query and key, and two rotary embeddings."""

from ml.interop.common import ATTENTION, EMBEDDINGS_AND_HEAD, GATED_MLP, QUERY_KEY_NORM, query_key_norm
from ml.interop.families.gemma2 import FOUR_NORMS, later_gemma
from ml.interop.family import Family
from ml.interop.fields import Field
from ml.interop.kinds import FULL, SLIDING
from ml.interop.rotary import Rope
from ml.interop.windows import windows
from ml.layers import Attention, LanguageModelHead

GEMMA_3 = Family(
    "Gemma 3, text",
    {"gemma3_text": "Gemma3ForCausalLM"},
    later_gemma(
        windows(
            6,
            Rope(1e6, inside=FULL),
            Rope(inside=SLIDING, theta_field="rope_local_base_freq", scaled=False),
            patterns=("sliding_window_pattern", "_sliding_window_pattern"),
        ),
        Field("attn_logit_softcapping", Attention, "soft_cap", default=None),
        Field("final_logit_softcapping", LanguageModelHead, "logit_soft_cap", default=None),
        *query_key_norm(),
    ),
    (*EMBEDDINGS_AND_HEAD, *ATTENTION, *QUERY_KEY_NORM, *GATED_MLP, *FOUR_NORMS),
    frozenset(("cache_implementation",)),
)

FAMILIES = (GEMMA_3,)
