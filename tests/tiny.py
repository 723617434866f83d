"""Tiny random pipelines in the shapes of Stable Diffusion 1.5, 2.1, XL and 3, and of FLUX: real classes, built offline
at once."""

import string

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)


SHAPES = ("sd15", "sd21")
FAMILIES = (*SHAPES, "sdxl", "sd3", "flux")
DIM = 32
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def tiny_tokenizer(pad_token=EOS):
    """A CLIP tokenizer without merges: every letter is a token. "!" has the id 0 and EOS the largest, as in CLIP's."""
    signs = ["!", *string.ascii_lowercase, *string.digits, *",.<>-_"]
    tokens = [*signs, *(sign + "</w>" for sign in signs), BOS, EOS]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], pad_token=pad_token, model_max_length=77)


def tiny_text_encoder(shape, tokenizer, cls=CLIPTextModel):
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
    return cls(config)


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


def tiny_t5():
    """A T5 that knows letters, and its tokenizer."""
    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        *((letter, -2.0) for letter in "▁" + string.ascii_lowercase),
    ]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=16)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=DIM, d_kv=8, d_ff=DIM, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    return tokenizer, T5EncoderModel(config).eval()


def tiny_of_family(family, vae, sample=16, seed=0):
    """A text-to-image pipeline of one of `FAMILIES` around an autoencoder, whose latents are `sample` on a side."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = _BUILDERS.get(family, _stable_diffusion)(family, vae, sample)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _stable_diffusion(family, vae, sample):
    tokenizer = tiny_tokenizer(pad_token=EOS if family == "sd15" else "!")
    return StableDiffusionPipeline(
        tokenizer=tokenizer,
        text_encoder=tiny_text_encoder(family, tokenizer).eval(),
        unet=tiny_unet(family, vae.config.latent_channels, sample).eval(),
        vae=vae,
        scheduler=tiny_scheduler(family),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _stable_diffusion_xl(family, vae, sample):
    tokenizer, tokenizer_2 = tiny_tokenizer(), tiny_tokenizer(pad_token="!")
    unet = UNet2DConditionModel(
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        sample_size=sample,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=2 * DIM,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + DIM,
    )
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=tiny_text_encoder("sd15", tokenizer).eval(),
        text_encoder_2=tiny_text_encoder("sd21", tokenizer_2, CLIPTextModelWithProjection).eval(),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=unet.eval(),
        scheduler=tiny_scheduler("sd15"),
        add_watermarker=False,
    )


def _stable_diffusion_3(family, vae, sample):
    tokenizer, (tokenizer_3, t5) = tiny_tokenizer(), tiny_t5()
    transformer = SD3Transformer2DModel(
        sample_size=sample,
        patch_size=2,
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=DIM,
        caption_projection_dim=32,
        pooled_projection_dim=2 * DIM,
        pos_embed_max_size=2 * sample,
    )
    # Diffusers puts both CLIPs side by side and fills up to the width of T5: they are half as wide.
    encoders = []
    for _ in range(2):
        config = tiny_text_encoder("sd21", tokenizer).config
        config.hidden_size, config.projection_dim = DIM // 2, DIM
        encoders.append(CLIPTextModelWithProjection(config).eval())
    return StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=encoders[0],
        tokenizer=tokenizer,
        text_encoder_2=encoders[1],
        tokenizer_2=tokenizer,
        text_encoder_3=t5,
        tokenizer_3=tokenizer_3,
    )


def _flux(family, vae, sample):
    tokenizer, (tokenizer_2, t5) = tiny_tokenizer(), tiny_t5()
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * vae.config.latent_channels,  # FLUX packs squares of 2 x 2 latents
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=DIM,
        pooled_projection_dim=DIM,
        axes_dims_rope=(4, 4, 8),
    )
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=tiny_text_encoder("sd21", tokenizer).eval(),
        tokenizer=tokenizer,
        text_encoder_2=t5,
        tokenizer_2=tokenizer_2,
        transformer=transformer.eval(),
    )
    pipeline.default_sample_size = sample
    return pipeline


_BUILDERS = {"sdxl": _stable_diffusion_xl, "sd3": _stable_diffusion_3, "flux": _flux}
