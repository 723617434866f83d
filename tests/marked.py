"""A tiny model folder whose carrier `latent` works: patterns and extractor are solved for, not trained."""

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D

from privgen.diffusion.latents import encode
from privgen.io.images import load_image
from privgen.io.residual import to_canvas
from privgen.models.mappers import LatentMapper, TokenMapper
from privgen.training.watermark.extractor import linear_extractor
from privgen.watermark.write.linear_code import measure_response, solve_code, stationary_covariance


N_BITS, PILOTS, SIZE, PSNR = 48, 16, 32, 30.0


def save_marked_model(folder, pipeline, photos):
    """Save a tiny pipeline (32 x 32 pixels, 4 channels of 16 x 16 latents) with networks that mark and read."""
    linearise(pipeline.vae.encoder)
    linearise(pipeline.vae.decoder)
    mapper, extractor = solve(pipeline.vae, to_canvas([load_image(path).pixels for path in photos], SIZE))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        token_mapper = TokenMapper(N_BITS, vectors=2, width=32, hidden=16, tau=401)
    pipeline.save_pretrained(folder)
    for name, network in (("latent_mapper", mapper), ("extractor", extractor), ("token_mapper", token_mapper)):
        network.save_pretrained(folder / "privgen" / name)
    return folder


def linearise(half):
    """Make an encoder or decoder nearly linear, so that a mark looks alike in every image."""
    for module in half.modules():
        if isinstance(module, ResnetBlock2D):
            torch.nn.init.zeros_(module.conv2.weight)
        elif isinstance(module, Attention):
            torch.nn.init.zeros_(module.to_out[0].weight)
    torch.nn.init.constant_(half.conv_norm_out.weight, 0.5)
    torch.nn.init.constant_(half.conv_norm_out.bias, 4.0)  # where silu is nearly the identity


@torch.no_grad()
def solve(vae, canvases):
    """Mapper and extractor of the best linear code for some photographs."""
    canvases = torch.cat([canvases, canvases.flip(-1), canvases.flip(-2), canvases.flip(-1, -2)])
    z = encode(vae, canvases)
    covariance = (torch.cov(z.flatten(1).T, correction=0) + stationary_covariance(z)) / 2
    code = solve_code(covariance, measure_response(vae, canvases[:1]), N_BITS + PILOTS, ridge=1e-3)
    mapper = LatentMapper(N_BITS, channels=z.shape[1], size=z.shape[-1], strength=0.5)
    patterns, filters = (rows.flip(0) for rows in (code.patterns, code.filters))  # the best ones first
    solved = {"patterns": patterns[:N_BITS], "filters": filters, "offset": filters @ z.flatten(1).mean(0)}
    mapper.patterns.copy_(solved["patterns"].view_as(mapper.patterns))
    return mapper, linear_extractor(vae, solved, PSNR).eval()
