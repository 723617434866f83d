"""A tiny model folder whose carrier `latent` works: patterns and extractor are solved for, not trained.

Every quarter of the canvas carries 12 bits, as 12 patterns in the latents of that quarter: those that photographs hide
least. The extractor is an ordinary one, its residual blocks set to the identity and the rest to the matched filters.
"""

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch.nn.functional import interpolate, unfold

from privgen.images import load_image
from privgen.models.watermark import Extractor, LatentMapper, TokenMapper
from privgen.watermark.embed import decoded_difference, encode_canvas, to_canvas


N_BITS, PER_QUARTER, SIZE, QUARTER = 48, 12, 32, 16
SHRINKAGE = 1e-4


def save_marked_model(folder, pipeline, photos):
    """Save a tiny pipeline (32 x 32 pixels, 4 channels of 16 x 16 latents) with networks that mark and read."""
    linearise(pipeline.vae.decoder)
    mapper, extractor = solve(pipeline.vae, to_canvas([load_image(path).pixels for path in photos], SIZE))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        token_mapper = TokenMapper(N_BITS, vectors=2, width=32, hidden=16, tau=401)
    pipeline.save_pretrained(folder)
    for name, network in (("latent_mapper", mapper), ("extractor", extractor), ("token_mapper", token_mapper)):
        network.save_pretrained(folder / "privgen" / name)
    return folder


def linearise(decoder):
    """Make a decoder nearly linear, so that a mark looks alike in every image."""
    for module in decoder.modules():
        if isinstance(module, ResnetBlock2D):
            torch.nn.init.zeros_(module.conv2.weight)
        elif isinstance(module, Attention):
            torch.nn.init.zeros_(module.to_out[0].weight)
    torch.nn.init.constant_(decoder.conv_norm_out.weight, 0.5)
    torch.nn.init.constant_(decoder.conv_norm_out.bias, 4.0)  # where silu is nearly the identity


@torch.no_grad()
def solve(vae, canvases):
    """Mapper and extractor: generalised eigenvectors of signal against what photographs hold."""
    canvases = torch.cat([canvases, canvases.flip(-1), canvases.flip(-2), canvases.flip(-1, -2)])
    z = encode_canvas(vae, canvases)
    residuals = 0.3 * torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    differences = decoded_difference(vae, z, z + residuals)
    for size in (5 * SIZE, SIZE):  # as in a photo of that size
        differences = interpolate(differences, (size, size), mode="bicubic", antialias=True)
    latents = quarters(residuals, QUARTER // 2).flatten(0, 1)
    responses, clean = (quarters(images, QUARTER).flatten(0, 1) for images in (differences, canvases))
    decoder = torch.linalg.lstsq(latents, responses).solution  # (256, 768)
    matched = torch.linalg.solve(torch.cov(clean.T) + SHRINKAGE * torch.eye(clean.shape[1]), decoder.T).T
    energy, basis = torch.linalg.eigh(decoder @ decoder.T)
    scaled = basis / energy.clamp(min=1e-4 * energy.max()).sqrt()
    best = scaled @ torch.linalg.eigh(scaled.T @ decoder @ matched.T @ scaled).eigenvectors[:, -PER_QUARTER:]
    filters = best.T @ matched
    extractor = with_filters(filters / filters.norm(dim=1, keepdim=True))
    extractor.mean.copy_(extractor(canvases).mean(0))
    return with_patterns(best.T.reshape(PER_QUARTER, 4, QUARTER // 2, QUARTER // 2)), extractor.eval()


def with_patterns(patterns):
    """A mapper with 12 patterns for each quarter of the latents."""
    mapper = LatentMapper(N_BITS, channels=4, size=16, strength=0.5)
    mapper.patterns.data.zero_()
    for quarter in range(4):
        rows, columns = (slice(8 * part, 8 * part + 8) for part in divmod(quarter, 2))
        mapper.patterns.data[quarter * PER_QUARTER : (quarter + 1) * PER_QUARTER, :, rows, columns] = patterns
    return mapper


def quarters(images, side):
    """Images of twice that side to (B, 4, numbers), these in the order (channel, row, column)."""
    return unfold(images, side, stride=side).mT


def with_filters(filters):
    """An extractor that applies 12 linear filters, (12, 768), to each quarter."""
    extractor = Extractor(N_BITS, SIZE, channels=(48, 4 * PER_QUARTER, 16), blocks=1)
    for level in (extractor.level_1, extractor.level_2, extractor.level_3):
        for block in level:
            torch.nn.init.zeros_(block.second.weight)
            torch.nn.init.zeros_(block.second.bias)
    layers = (extractor.stem, extractor.down_1, extractor.down_2, extractor.narrow, extractor.head)
    for layer in layers:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    extractor.stem.weight.data[torch.arange(48), torch.arange(48), 1, 1] = 1.0
    # filter[k, c, Y, y, s, X, x, t]: 8 x 8 block (Y, X), 4 x 4 patch (y, x) in it, pixel (s, t) in that.
    parts = filters.view(PER_QUARTER, 3, 2, 2, 4, 2, 2, 4).permute(2, 5, 0, 1, 4, 7, 3, 6)
    extractor.down_1.weight.data.copy_(parts.reshape(4 * PER_QUARTER, 48, 2, 2))
    for block in range(4):
        for k in range(PER_QUARTER):
            extractor.down_2.weight.data[k, block * PER_QUARTER + k, block // 2, block % 2] = 1.0
    for k in range(PER_QUARTER):  # silu(a) - silu(-a) = a
        extractor.narrow.weight.data[2 * k, k], extractor.narrow.weight.data[2 * k + 1, k] = 1.0, -1.0
    head = extractor.head.weight.data.view(4, PER_QUARTER, 32, 4)
    for quarter in range(4):
        for k in range(PER_QUARTER):
            head[quarter, k, 2 * k, quarter], head[quarter, k, 2 * k + 1, quarter] = 1.0, -1.0
    return extractor
