"""Images under FSDP, where every process must gather the same weights."""

from typing import Any

import torch
from torch import Tensor

from ml.layers.context import Auxiliary, Context
from ml.models.vision_language_model import VisionLanguageModel


def encode_always(model: VisionLanguageModel) -> None:
    """Lets the model encode a blank image where it is given none, in place; the values do not change.

    The sequences of one process may have images where those of another have none. The encoder is gathered for both.
    """
    embed, vision, shape = model.embed, model.vision, model.image_shape

    def embedded(tokens: Tensor, context: Context, images: Tensor | None = None, **inputs: Any) -> Tensor:
        x = embed(tokens, context, images, **inputs)
        if images is not None and len(images) > 0:
            return x
        blank = torch.zeros(1, *shape, device=tokens.device)
        return x + 0.0 * vision(blank, Auxiliary()).sum().to(x.dtype)

    vars(model)["embed"] = embedded
