"""Vision models of the transformers library, and Juniper's constructors of the same models."""

from functools import partial

import torch
from oracles import rename
from torch import nn
from transformers import (
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PixtralVisionConfig,
    SiglipVisionConfig,
)

from ml.blocks import DecoderBlock, Repeat
from ml.layers import (
    MLP,
    Attention,
    GatedMLP,
    LanguageModelHead,
    LayerNorm,
    Linear,
    RMSNorm,
    Rotary,
    TwoDimensionalRotary,
    gelu,
)
from ml.layers.vision import PatchEmbedding, Projector
from ml.models import LanguageModel
from ml.models.vision_encoder import VisionEncoder
from ml.models.vision_language_model import VisionLanguageModel

# Both sides round in float32 and add up in another order; outputs and gradients of order one come out near 1e-6 apart,
# and ten times that leaves room for the deepest sums.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
IMAGE, VOCABULARY = 60, 61

PIXTRAL_NAMES = {
    "patch_conv": "patches.projection",
    "ln_pre": "patches.norm",
    "transformer.layers.": "encoder.block_",
    "attention_norm": "mixer_norm",
    "ffn_norm": "mlp_norm",
    "attention.q_proj": "mixer.query",
    "attention.k_proj": "mixer.key",
    "attention.v_proj": "mixer.value",
    "attention.o_proj": "mixer.output",
    "feed_forward.gate_proj": "mlp.gate",
    "feed_forward.up_proj": "mlp.up",
    "feed_forward.down_proj": "mlp.down",
}
SIGLIP_NAMES = {
    "vision_model.": "",
    "embeddings.patch_embedding": "patches.projection",
    "embeddings.position_embedding": "patches.position",
    "encoder.layers.": "encoder.block_",
    "layer_norm1": "mixer_norm",
    "layer_norm2": "mlp_norm",
    "self_attn.q_proj": "mixer.query",
    "self_attn.k_proj": "mixer.key",
    "self_attn.v_proj": "mixer.value",
    "self_attn.out_proj": "mixer.output",
    "mlp.fc1": "mlp.up",
    "mlp.fc2": "mlp.down",
    "post_layernorm": "norm",
}
LLAVA_NAMES = {
    "multi_modal_projector.linear_1": "vision.adapter.first",
    "multi_modal_projector.linear_2": "vision.adapter.second",
    "model.language_model.": "model.",
    "model.vision_tower.": "vision.",
    "model.vision.": "vision.",
}


def as_is(in_features: int, out_features: int) -> nn.Module:
    return nn.Identity()


def pixtral_like(config: PixtralVisionConfig, image_size: tuple[int, int], adapter=as_is) -> partial:
    """Returns the constructor of Juniper's encoder of a `PixtralVisionConfig`."""
    no_bias = partial(Linear, bias=False)
    rotary = partial(TwoDimensionalRotary, theta=config.rope_parameters["rope_theta"])
    attention = partial(Attention, num_heads=config.num_attention_heads, causal=False, rotary=rotary, linear=no_bias)
    mlp = partial(GatedMLP, intermediate_size=config.intermediate_size, activation=gelu, linear=no_bias)
    return partial(
        VisionEncoder,
        hidden_size=config.hidden_size,
        patches=partial(
            PatchEmbedding,
            image_size=image_size,
            patch_size=config.patch_size,
            num_channels=config.num_channels,
            linear=no_bias,
            position=None,
            normalization=RMSNorm,
        ),
        encoder=partial(
            Repeat, num_blocks=config.num_hidden_layers, block=partial(DecoderBlock, mixer=attention, mlp=mlp)
        ),
        normalization=None,
        adapter=adapter,
    )


def siglip_like(config: SiglipVisionConfig) -> partial:
    """Returns the constructor of Juniper's encoder of a `SiglipVisionConfig`."""
    norm = partial(LayerNorm, epsilon=config.layer_norm_eps)
    attention = partial(Attention, num_heads=config.num_attention_heads, causal=False, rotary=None)
    mlp = partial(MLP, intermediate_size=config.intermediate_size, activation=partial(gelu, approximate="tanh"))
    block = partial(DecoderBlock, mixer=attention, mlp=mlp, normalization=norm)
    size = config.image_size, config.image_size
    return partial(
        VisionEncoder,
        hidden_size=config.hidden_size,
        patches=partial(
            PatchEmbedding, image_size=size, patch_size=config.patch_size, num_channels=config.num_channels
        ),
        encoder=partial(Repeat, num_blocks=config.num_hidden_layers, block=block),
        normalization=norm,
        adapter=as_is,
    )


def tensors(oracle: nn.Module, names: dict[str, str], gradients: bool = False) -> dict[str, torch.Tensor]:
    """Returns the weights of `oracle`, or their gradients, under Juniper's names; a convolution as a matrix."""
    found = {
        rename(name, names): parameter.grad if gradients else parameter.detach()
        for name, parameter in oracle.named_parameters()
    }
    return {name: tensor.flatten(1) if tensor.dim() == 4 else tensor for name, tensor in found.items()}


def unsettled(oracle: nn.Module) -> nn.Module:
    """Changes norms and biases from the 1 and 0 of transformers, which would hide a mistake."""
    with torch.no_grad():
        for parameter in oracle.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return oracle


def assert_same_gradients(model: nn.Module, expected: dict[str, torch.Tensor]) -> None:
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        atol = CLOSE["atol"] * max(1.0, expected[name].abs().max().item())  # the sums of large terms round by more
        torch.testing.assert_close(
            gradient, expected[name], rtol=1e-4, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


def pixtral_config(**changes) -> PixtralVisionConfig:
    settings = {
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "patch_size": 4,
        "image_size": 64,
        "initializer_range": 0.2,  # large enough that attention is far from uniform
        "attn_implementation": "eager",
    }
    return PixtralVisionConfig(**{**settings, **changes})


def llava_oracle() -> LlavaForConditionalGeneration:
    torch.manual_seed(1)
    language = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=48, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2, attn_implementation="eager",
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=pixtral_config(),
        text_config=language,
        image_token_id=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        attn_implementation="eager",
    )
    return unsettled(LlavaForConditionalGeneration(config))


def llava_like(config: LlavaConfig, image_size: tuple[int, int]) -> VisionLanguageModel:
    text, linear = config.text_config, partial(Linear, bias=False)
    norm = partial(RMSNorm, epsilon=text.rms_norm_eps)
    rotary = partial(Rotary, theta=text.rope_parameters["rope_theta"])
    attention = partial(Attention, num_heads=4, num_kv_heads=2, rotary=rotary, linear=linear)
    mlp = partial(GatedMLP, intermediate_size=text.intermediate_size, linear=linear)
    block = partial(DecoderBlock, mixer=attention, mlp=mlp, normalization=norm)
    with torch.device("meta"):
        return VisionLanguageModel(
            image_token_id=config.image_token_id,
            language_model=partial(
                LanguageModel,
                vocab_size=text.vocab_size,
                hidden_size=text.hidden_size,
                decoder=partial(Repeat, num_blocks=text.num_hidden_layers, block=block),
                head=partial(LanguageModelHead, normalization=norm),
            ),
            vision=pixtral_like(config.vision_config, image_size, adapter=Projector),
        )
