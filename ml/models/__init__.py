"""Models: what the trainer trains, and what it needs to know about one."""

from ml.models.adapters import load_adapters, merge_adapters, save_adapters, unmerge_adapters
from ml.models.flops import flops_per_token
from ml.models.language_model import LanguageModel
from ml.models.materialize import materialize
from ml.models.parameters import ScaledParameter, named_parameters_with_scales
from ml.models.vision_encoder import VisionEncoder
from ml.models.vision_language_model import VisionLanguageModel

__all__ = [
    "LanguageModel",
    "ScaledParameter",
    "VisionEncoder",
    "VisionLanguageModel",
    "flops_per_token",
    "load_adapters",
    "materialize",
    "merge_adapters",
    "named_parameters_with_scales",
    "save_adapters",
    "unmerge_adapters",
]
