"""Models that read images, imported: logits, loss and all gradients with images against transformers."""

import pytest
import torch
from hub_cases import CASES
from hub_models import batch, imported, oracle_of, saved, vocabulary
from test_interchange import CLOSE, assert_same_gradients
from transformers import LlavaConfig

from ml.interop.describing import describe_folder, gin_text
from ml.interop.errors import InteropError
from ml.interop.importing import values_of

VISION = {name: case for name, case in CASES.items() if "vision_config" in case[1]}


@pytest.mark.parametrize("case", VISION.values(), ids=VISION)
def test_images_have_the_same_logits_loss_and_gradients(case, tmp_path):
    oracle = oracle_of(*case)
    model = imported(saved(oracle, tmp_path / "hub"))
    tokens, targets = batch(vocabulary(oracle), (2, 3 + model.tokens_per_image + 5))
    tokens[:, 3 : 3 + model.tokens_per_image] = oracle.config.image_token_id
    images = torch.rand((2, *model.image_shape), generator=torch.Generator().manual_seed(5))
    sizes = torch.tensor([model.image_shape[1:]] * 2)
    expected = oracle(tokens, pixel_values=images, image_sizes=sizes).logits
    loss = torch.nn.functional.cross_entropy(expected.flatten(0, 1), targets.flatten())
    loss.backward()
    torch.testing.assert_close(model(tokens, images=images), expected, **CLOSE)
    sums = model.loss(tokens, targets, images=images)
    sums.mean.backward()
    torch.testing.assert_close(sums.mean, loss, **CLOSE)
    assert_same_gradients(oracle, model, tmp_path / "gradients")
    assert all(parameter.grad.abs().sum() > 0 for name, parameter in model.named_parameters() if "vision" in name)


def test_a_folder_is_described_with_the_fields_inside(tmp_path):
    folder = saved(oracle_of(*CASES["LLaVA with Pixtral"]), tmp_path)
    text = gin_text(folder)
    assert "Trainer.model = @VisionLanguageModel" in text
    assert "config.json#vision_config.patch_size" in text
    assert "config.json#text_config.rms_norm_eps" in text
    assert describe_folder(folder)[0].startswith("LLaVA with Pixtral: ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_config": {"model_type": "clip_vision_model"}}, "vision_config.model_type is 'clip_vision_model'"),
        ({"vision_config": {"model_type": "pixtral", "gated": True}}, "vision_config.gated is unknown"),
        ({"text_config": {"model_type": "gemma2"}}, "text_config.model_type is 'gemma2'"),
        ({"text_config": []}, "text_config must be an object"),
        ({"vision_feature_layer": -2}, "only -1 can be expressed"),
        ({"vision_feature_layer": ...}, "vision_feature_layer is -2"),
        (
            {"text_config": {"model_type": "qwen2", "tie_word_embeddings": True}},
            "text_config.tie_word_embeddings is true",
        ),
    ],
)
def test_other_towers_and_texts_are_refused(changes, message):
    config = oracle_of(*CASES["LLaVA with Pixtral"]).config.to_dict() | changes
    with pytest.raises(InteropError, match=message):
        values_of({name: value for name, value in config.items() if value is not ...})


def test_absent_fields_inside_have_the_defaults_of_transformers():
    """Files of composite models skip what transformers takes anyway."""
    for kind in ("llama", "mistral", "qwen2"):
        short = {"model_type": "llava", "vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
        short |= {"text_config": {"model_type": kind}, "vision_config": {"model_type": "pixtral"}}
        long = LlavaConfig(**short).to_dict()
        found, expected = ({value.key: value.value for value in values_of(one)} for one in (short, long))
        assert found == expected
