"""The small model's four networks and its noise schedule: Stable Diffusion 1.5's architectures, far smaller.

All start with random weights from torch's global generator. Together they have 6.0 million parameters, 12 MB in fp16.
"""

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from example.demo_model.drawing import SIZE

LATENT_CHANNELS = 6  # with a factor of 4: thin lines do not survive 4 channels and a factor of 8
FACTOR = 4  # a latent's sides are this much shorter than its image's
CHANNELS = (32, 64, 80, 96)  # of the UNet and the ControlNet, by resolution
TEXT_WIDTH = 96  # of the text encoder's hidden states, to which the UNet attends
TEXT_LENGTH = 77  # tokens
TOKEN_STD = 0.5  # of the first embeddings: training is short, so words differ clearly from its start
POSITION_STD = 0.1


def vae() -> AutoencoderKL:
    """Images [n, 3, h, w] in -1..1 to latents [n, 6, h / 4, w / 4] and back, without attention."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=SIZE,
    )


def unet() -> UNet2DConditionModel:
    """Noisy latents [n, 6, h, w], timesteps [n] and text states [n, 77, 96] to a prediction [n, 6, h, w]."""
    return UNet2DConditionModel(
        sample_size=SIZE // FACTOR,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=CHANNELS,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """The UNet's inputs and a hint [n, 3, 4 h, 4 w] in 0..1 to residuals for the UNet, from a copy of its weights."""
    return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16, 32))


def text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Tokens [n, 77] of this tokenizer to states [n, 77, 96]."""
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TEXT_LENGTH,
            hidden_act="quick_gelu",
            projection_dim=TEXT_WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    _widen_embeddings(encoder)
    return encoder


def noise_schedule() -> DDIMScheduler:
    """Stable Diffusion's noise levels; the UNet predicts v (Salimans and Ho, arXiv 2202.00512)."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


@torch.no_grad()
def _widen_embeddings(encoder: CLIPTextModel) -> None:
    for embedding in (module for module in encoder.modules() if isinstance(module, nn.Embedding)):
        nn.init.normal_(embedding.weight, std=POSITION_STD if embedding.num_embeddings == TEXT_LENGTH else TOKEN_STD)


@torch.no_grad()
def close_residual_branches(network: nn.Module) -> None:
    """Zero the last layer of every residual branch: a deep network that starts as a shallow one learns sooner."""
    for module in network.modules():
        if isinstance(module, ResnetBlock2D):
            _zero(module.conv2)
        elif isinstance(module, Transformer2DModel):
            _zero(module.proj_out)


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        parameter.zero_()
