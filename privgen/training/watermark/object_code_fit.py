"""Make the code of objects from measurements, in closed form: which waves are written, and which filters read them.

Nothing is trained. Some images with objects are encoded. A small random change is added to their latents, and what it
changes in the decoded images is added to the images. Regressions say what a change of one latent does to the pixels
and to what a reader sees. The covariance of what a reader sees inside objects is taken for stationary. The waves are
then the leading generalised eigenvectors, for each frequency by itself: read as clearly as possible at a given change
of pixels (compare `privgen.watermark.write.linear_code`).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad, unfold

from privgen.diffusion.latents import decode, encode
from privgen.diffusion.unrolled_ddim import frozen
from privgen.models.family import Canvas
from privgen.models.mappers import TokenMapper
from privgen.models.object_code import ObjectCode
from privgen.training.watermark.patch_language import PatchLanguage
from privgen.watermark.objects.code import ContentGuess


_CHANGE = 0.25  # RMS of the random change of scaled latents
_LAGS = 4  # cells, beyond which what a reader sees is taken for uncorrelated
_RIDGE = 0.03  # of the mean of a diagonal
_HIGHEST = 10**0.5  # cycles a period


@torch.no_grad()
def fit_object_code(
    pipe: Any, images: Tensor, masks: Tensor, *, waves: int = 96, timestep: int = 119, batch_size: int = 8
) -> ObjectCode:
    """Make the code of objects of a model.

    Args:
        pipe: a text-to-image pipeline of the Stable Diffusion 1 or 2 family.
        images: (N, 3, S, S) in [0, 1], at least a hundred, of the kind that is to be marked.
        masks: (N, H, W), 1 where an object is.
        waves: how many waves carry a mark.
        timestep: of 1000, at which the denoiser is asked for the content of an image.
        batch_size: images that are computed at a time.
    """
    canvas, guess = Canvas.of_pipeline(pipe), ContentGuess(pipe, timestep)
    generator = torch.Generator().manual_seed(0)
    found: list[tuple[Tensor, ...]] = []
    for part in images.split(batch_size):
        z = encode(pipe.vae, part)
        change = _CHANGE * torch.randn(z.shape, generator=generator)
        with torch.enable_grad(), frozen([pipe.vae]):
            start = z.clone().requires_grad_()
            decoded = decode(pipe.vae, start)
            pixels = decode(pipe.vae, z + change).detach() - decoded.detach()
            [cost] = torch.autograd.grad((decoded * pixels).sum(), start)
        plain, changed = guess.rest(part), guess.rest((part + pixels).clamp(0, 1))
        found.append((plain, changed - plain, change, cost))
    rest, answer, change, cost = (torch.cat(column) for column in zip(*found, strict=True))
    inside = (avg_pool2d(masks[:, None].float(), canvas.patch) >= 0.5).float()
    return solve(canvas.size, rest, answer, change, cost, inside, waves=waves, timestep=timestep)


def solve(
    size: int,
    rest: Tensor,
    answer: Tensor,
    change: Tensor,
    cost: Tensor,
    inside: Tensor,
    *,
    waves: int = 96,
    timestep: int = 119,
    period: int = 8,
    reach: int = 2,
) -> ObjectCode:
    """Solve for the waves and filters.

    Args:
        size: side in pixels of the canvas.
        rest: (N, C, h, w), latents of images without marks, less their content.
        answer: the same shape, how `rest` answers to the changes.
        change: the same shape, of the latents.
        cost: (N, C, h, w), the gradient of half the squared change of pixels, linear in the changes.
        inside: (N, 1, h, w) of 0 and 1, where objects are.
        waves: how many waves carry a mark.
        timestep: see `fit_object_code`.
        period: cells after which all waves repeat.
        reach: cells on each side that the whitening filter and the answers extend to.
    """
    channels = rest.shape[1]
    kernel = _whitening(rest, inside, reach)
    read, drawn = _regressed(change, answer, reach), _regressed(change, cost, reach)
    top = int(_HIGHEST)
    rows = [
        (x, y)
        for x in range(top + 1)
        for y in range(-top, top + 1)
        if (x > 0 or y > 0) and x * x + y * y <= _HIGHEST**2
    ]
    candidates = []
    for x, y in rows:
        phase = _phase(x, y, period, reach)
        whitened = torch.einsum("ockl,kl->oc", kernel.to(phase), phase) @ torch.einsum(
            "ockl,kl->oc", read.to(phase), phase
        )
        energy = torch.einsum("ockl,kl->oc", drawn.to(phase), phase)
        energy = (energy + energy.mH) / 2
        energy = energy + _RIDGE * energy.diagonal().real.mean() * torch.eye(channels)
        root = torch.linalg.cholesky(energy)
        inverse = torch.linalg.inv(root)
        values, vectors = torch.linalg.eigh(inverse @ whitened.mH @ whitened @ inverse.mH)
        written = inverse.mH @ vectors
        candidates += [(float(values[i]), x, y, written[:, i], whitened @ written[:, i]) for i in range(channels)]
    candidates.sort(key=lambda item: -item[0])
    chosen = candidates[:waves]
    code = ObjectCode(len(chosen), channels, size, period, timestep, reach)
    code.cycles.copy_(torch.tensor([[x, y] for _, x, y, _, _ in chosen]))
    code.written.copy_(torch.view_as_real(torch.stack([item[3] for item in chosen]).resolve_conj()))
    code.answers.copy_(torch.view_as_real(torch.stack([item[4] for item in chosen]).resolve_conj()))
    for filters, found in ((code.whitening, kernel), (code.answer, read), (code.cost, drawn)):
        filters.copy_(found)
    return code


def _phase(x: int, y: int, period: int, reach: int) -> Tensor:
    """What a filter does to a wave at the offsets that it looks at."""
    offset = torch.arange(-reach, reach + 1)
    angle = 2 * torch.pi / period * (offset[:, None] * y + offset * x)
    return torch.polar(torch.ones_like(angle), angle)


def _regressed(change: Tensor, answer: Tensor, reach: int) -> Tensor:
    """The filter (outputs, C, side, side) that turns changes of latents into answers, by least squares."""
    side = 2 * reach + 1
    inputs = unfold(pad(change, (reach,) * 4), side).transpose(1, 2).flatten(0, 1)
    outputs = answer.flatten(2).transpose(1, 2).flatten(0, 1)
    solved = torch.linalg.solve(inputs.T @ inputs, inputs.T @ outputs)
    return solved.T.unflatten(1, (change.shape[1], side, side))


def _whitening(rest: Tensor, inside: Tensor, reach: int) -> Tensor:
    """The filter (C, C, side, side) that whitens what is seen inside objects, cut off beyond its reach."""
    channels, (height, width) = rest.shape[1], rest.shape[2:]
    double = (2 * height, 2 * width)
    spectrum, places = (torch.fft.fft2(part, s=double) for part in (rest * inside, inside))
    sums = torch.fft.ifft2(torch.einsum("nayx,nbyx->abyx", spectrum, spectrum.conj())).real
    pairs = torch.fft.ifft2(places.abs().square().sum((0, 1))).real
    lag = torch.arange(-_LAGS, _LAGS + 1)
    taper = 1 - lag.abs() / (_LAGS + 1)
    near = sums[:, :, lag][:, :, :, lag] / pairs[lag][:, lag].clamp(min=1) * taper[:, None] * taper
    count = 4 * _LAGS
    grid = torch.zeros(channels, channels, count, count)
    grid[:, :, (lag % count)[:, None], lag % count] = near
    covariance = torch.fft.fft2(grid).permute(2, 3, 0, 1)
    covariance = (covariance + covariance.mH) / 2
    values, vectors = torch.linalg.eigh(covariance)
    least = _RIDGE * values.mean()
    roots = (vectors * values.clamp(min=least).rsqrt()[..., None, :]) @ vectors.mH
    kernel = torch.fft.ifft2(roots.permute(2, 3, 0, 1)).real
    offset = torch.arange(-reach, reach + 1)
    return kernel[:, :, (-offset % count)[:, None], -offset % count]  # conv2d correlates


@torch.no_grad()
def with_words(code: ObjectCode, mapper: TokenMapper, patterns: Tensor, gains: Tensor) -> ObjectCode:
    """Return the code with the words of a token mapper, which say its waves as well as they say their own patterns.

    Args:
        code: the code of objects.
        mapper: of messages to tokens, linear in the bits.
        patterns: (n_bits, C, h, w), which the mapper's bits write.
        gains: (1, C, 1, 1), how much each channel changes pixels.
    """
    vectors, width = mapper.config.vectors, mapper.config.width
    cells = round(vectors**0.5)
    language = PatchLanguage(patterns, gains, cells=cells, width=width, cycles=5)
    language.learn_from(mapper)
    settings = {**code.config, "vectors": vectors, "width": width, "tau": mapper.config.tau}
    taught = ObjectCode(**{name: value for name, value in settings.items() if not name.startswith("_")})
    taught.load_state_dict({**taught.state_dict(), **{k: v for k, v in code.state_dict().items() if v.numel()}})
    waves = code.config.waves
    unit = torch.view_as_complex(torch.eye(2 * waves).unflatten(1, (waves, 2)))
    height, wide = patterns.shape[-2:]
    said = language.embeddings(code.patterns(unit, height, wide)) - language.words
    taught.words.copy_(language.words)
    taught.content.copy_(said)
    return taught
