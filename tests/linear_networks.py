"""Networks that mark and read in the latents of any autoencoder, in closed form and in seconds: for tests of sizes."""

import torch

from privgen.diffusion.latents import decode, encode
from privgen.models.aligner import Aligner
from privgen.models.extractor import Extractor
from privgen.models.family import Canvas
from privgen.models.mappers import LatentMapper
from privgen.watermark.networks import Networks
from privgen.watermark.write.linear_code import (
    low_frequencies,
    nearest_covariance,
    ridged,
    stationary_covariance,
    zero_forcing,
)


PILOTS = 8


@torch.no_grad()
def linear_networks(pipe, canvases, *, n_bits=16, cycles=2, psnr=28.0):
    """Mapper, extractor and aligner for a pipeline's autoencoder.

    Args:
        pipe: a text-to-image pipeline.
        canvases: (B, 3, S, S) in [0, 1], photographs at the pipeline's size.
        n_bits: bits of a message.
        cycles: of the smoothest waves across the canvas, of which patterns are combinations.
        psnr: of the marked images, at which filters read -1 and 1.
    """
    vae, canvas = pipe.vae, Canvas.of_pipeline(pipe)
    z = torch.cat(
        [
            encode(vae, part)
            for part in torch.cat([canvases, *(canvases.flip(d) for d in (-1, -2, (-1, -2)))]).split(16)
        ]
    )
    mean = z.flatten(1).mean(0)
    covariance = ridged(nearest_covariance((torch.cov(z.flatten(1).T) + stationary_covariance(z)) / 2), 0.1)
    waves = low_frequencies(canvas.channels, canvas.latents, canvas.latents, cycles).T.float()
    step = 0.3 * float(z.std()) * canvas.values**0.5
    plain = decode(vae, z[:1])
    changes = torch.cat([decode(vae, z[:1] + step * w.view(-1, *z.shape[1:])) - plain for w in waves.split(16)])
    heard = torch.cat([encode(vae, canvases[:1] + part) - z[:1] for part in changes.split(16)]).flatten(1)
    # The patterns that are read best at a given quality: Fisher's discriminant among the waves.
    energy = ridged((changes.flatten(1) / step).double() @ (changes.flatten(1) / step).double().T, 0.01)
    heard = (heard / step).double()
    quality = heard @ torch.linalg.solve(covariance.double(), heard.T)
    root = torch.linalg.inv(torch.linalg.cholesky(energy))
    best = torch.linalg.eigh(root @ quality @ root.T).eigenvectors[:, -(n_bits + PILOTS) :].flip(1)
    weights = (root.T @ best).T  # of each pattern, by wave; unit energy
    mixing = torch.linalg.qr(torch.randn(n_bits, n_bits, generator=torch.Generator().manual_seed(0)))[0].double()
    weights[:n_bits] = mixing @ weights[:n_bits]  # all bits are read equally well
    amplitude = 10 ** (-psnr / 20) * (3 * canvas.size**2 / n_bits) ** 0.5
    signals = amplitude * weights @ heard
    mapper = LatentMapper(n_bits, canvas.channels, canvas.latents, strength=1.0)
    patterns = (weights[:n_bits].float() @ waves).view_as(mapper.patterns)
    mapper.patterns.copy_(patterns / patterns.square().mean().sqrt())
    extractor = Extractor.from_vae(vae, n_bits, PILOTS, size=canvas.size).eval()
    filters = zero_forcing(covariance.double(), signals.T).float()
    extractor.filters.weight.copy_(filters)
    extractor.filters.bias.copy_(-filters @ mean)
    aligner = Aligner.from_extractor(extractor).eval()
    aligner.patterns.copy_(signals[:n_bits].float())
    aligner.mean.copy_(mean)
    aligner.covariance.copy_(covariance)
    networks = {"extractor": extractor, "latent_mapper": mapper, "aligner": aligner}
    return Networks.of(pipeline=pipe, **{name: network.requires_grad_(False) for name, network in networks.items()})
