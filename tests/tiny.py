"""Tiny random pipelines in the shapes of Stable Diffusion 1.5 and 2.1: real classes, built offline at once."""

import string

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer


SHAPES = ("sd15", "sd21")
DIM = 32
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def tiny_tokenizer(pad_token=EOS):
    """A CLIP tokenizer without merges: every letter is a token. "!" has the id 0 and EOS the largest, as in CLIP's."""
    signs = ["!", *string.ascii_lowercase, *string.digits, *",.<>-_"]
    tokens = [*signs, *(sign + "</w>" for sign in signs), BOS, EOS]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], pad_token=pad_token, model_max_length=77)


def tiny_text_encoder(shape, tokenizer):
    older = shape == "sd15"
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=DIM,
        intermediate_size=2 * DIM,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        projection_dim=DIM,
        hidden_act="quick_gelu" if older else "gelu",
        bos_token_id=0 if older else tokenizer.bos_token_id,
        # Stable Diffusion 1.5 ships this wrong id, and Transformers finds the pooled token by another way then.
        eos_token_id=2 if older else tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def tiny_unet(shape, channels=4, sample=16):
    older = shape == "sd15"
    return UNet2DConditionModel(
        in_channels=channels,
        out_channels=channels,
        sample_size=sample,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=DIM,
        attention_head_dim=8 if older else (2, 4),
        use_linear_projection=not older,
    )


def tiny_vae():
    return AutoencoderKL(
        block_out_channels=(16, 16),
        norm_num_groups=8,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
    )


def tiny_scheduler(shape):
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon" if shape == "sd15" else "v_prediction",
    )


def tiny_pipeline(shape="sd15", cls=StableDiffusionPipeline, seed=0, **options):
    """A text-to-image pipeline: 32 x 32 pixels, latents (4, 16, 16), vectors of 32 numbers, 77 tokens."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = tiny_tokenizer(pad_token=EOS if shape == "sd15" else "!")
        pipeline = cls(
            tokenizer=tokenizer,
            text_encoder=tiny_text_encoder(shape, tokenizer).eval(),
            unet=tiny_unet(shape).eval(),
            vae=tiny_vae().eval(),
            scheduler=tiny_scheduler(shape),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            **options,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
