"""Language model that reads images."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ml.config import child, configurable, require
from ml.layers.context import Context
from ml.layers.tracing import has_values
from ml.models.language_model import LanguageModel
from ml.models.parameters import settle_parameters
from ml.models.vision_encoder import VisionEncoder


@configurable
class VisionLanguageModel(LanguageModel):
    """Language model that reads images in the positions of some tokens (Liu et al. 2023, LLaVA).

    Each image occupies `vision.num_tokens` consecutive positions, which hold `image_token_id`. The embeddings there,
    learned positions included, are replaced by the output of `vision`, in order: `model(tokens, images=...)` and
    `model.loss(tokens, targets, images=...)`.

    Args:
        image_token_id: Token in the positions of an image; None is the last one of the vocabulary.
        language_model: Constructor of the language model; its parts keep their names, so bindings of a LanguageModel
            apply here too.
        vision: Constructor of the vision encoder.
    """

    image_token_id: int
    vision: Any  # a `VisionEncoder`, or a module with its attributes

    def __init__(
        self,
        *,
        image_token_id: int | None = None,
        language_model: Callable[..., LanguageModel] = LanguageModel,
        vision: Callable[..., nn.Module] = VisionEncoder,
    ):
        nn.Module.__init__(self)
        self._take_parts_of(language_model())
        if image_token_id is None:
            image_token_id = self.vocab_size - 1
        inside = 0 <= image_token_id < self.vocab_size
        message = f"must be one of the {self.vocab_size} tokens of the vocabulary, not {image_token_id}"
        require(inside, "image_token_id", message)
        self.image_token_id = image_token_id
        self.vision = child("vision", vision, self.hidden_size)
        settle_parameters(self)

    def _take_parts_of(self, model: LanguageModel) -> None:
        """Becomes the owner of what a language model consists of."""
        self.vocab_size, self.hidden_size = model.vocab_size, model.hidden_size
        self.tie_word_embeddings, self.lr_scale = model.tie_word_embeddings, model.lr_scale
        self.embeddings, self.decoder = model.embeddings, model.decoder
        self.head, self.multi_token = model.head, model.multi_token
        lost = [name for name, _ in model.named_children() if name not in self._modules]
        lost += list(model._parameters) + list(model._buffers)
        require(not lost, "language_model", f"has parts that a VisionLanguageModel does not have: {', '.join(lost)}")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return self.vision.image_shape

    @property
    def tokens_per_image(self) -> int:
        """Number of positions of an image."""
        return self.vision.num_tokens

    def embed(self, tokens: Tensor, context: Context, images: Tensor | None = None) -> Tensor:
        """Input of the first block, (B, T) -> (B, T, H), given `images` (I, C, height, width) in their order.

        Raises:
            ValueError: There are more or fewer image tokens than the images take. Where the tokens are on a GPU this
                stops the program at some later call, for the host does not wait to count them.
        """
        x = super().embed(tokens, context)
        is_decoding = context.cache is not None and context.cache.num_tokens > 0
        if images is None and is_decoding:
            return x  # an image token in there was generated, and stands for no image
        places = (tokens == self.image_token_id).flatten()
        num_images = 0 if images is None else len(images)
        _require_count(places, num_images, self.tokens_per_image)
        if num_images == 0:
            return x
        features = self.vision(images, context.auxiliary).flatten(0, 1).to(x.dtype)  # (I P, H)
        # Unlike `masked_scatter`, whose gradient synchronizes to count, this is given the number of positions.
        indices = places.nonzero_static(size=len(features)).squeeze(1)
        return x.flatten(0, 1).index_copy(0, indices, features).view_as(x)


def _require_count(places: Tensor, num_images: int, tokens_per_image: int) -> None:
    if not has_values(places):
        return
    count, wanted = places.sum(), num_images * tokens_per_image
    if places.device.type != "cpu":
        torch._assert_async(count == wanted, "the image tokens are not as many as the images take")
    elif count != wanted:
        raise ValueError(
            f"{num_images} images take {wanted} image tokens ({tokens_per_image} each), and there are {count}"
        )
