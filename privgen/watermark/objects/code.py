"""What images say of the code of objects: latents without their content, and what their windows say of any key.

An image is encoded, and what the model's denoiser takes for its content is taken away. The rest is whitened; see
`privgen.models.object_code`. For a fixed image and a random key, the correlation of a window with the key's waves is
exactly normal, as it is for tiles (`privgen.watermark.tile.p_values`).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from privgen.diffusion.latents import encode
from privgen.diffusion.parameterisation import NoiseLevel, predict_original
from privgen.diffusion.unrolled_ddim import Schedule
from privgen.errors import UsageError
from privgen.io.residual import to_canvas
from privgen.models.family import Canvas
from privgen.models.object_code import ObjectCode
from privgen.watermark.key import Key
from privgen.watermark.tile.pattern import N_BITS, Pattern, drawn_pattern
from privgen.watermark.write.with_token import plain_embeds


VERSION = 1
"""Of the marks: a change of how a key draws its waves, or of the waves of a model that ships, needs a new one."""
_LABEL = f"privgen/watermark/v{VERSION}/object-code".encode()

SHAPES = ((4, 4), (4, 6), (6, 4), (6, 6), (6, 9), (9, 6), (8, 8), (12, 12))
"""Heights and widths of windows, in cells."""
_STRIDE = 2  # cells from one window to the next

Window = tuple[int, int, int, int]
"""Left, top, right and bottom edge, in cells."""


class ContentGuess:
    """Takes away from the latents of images what a denoiser takes for their content.

    The denoiser gets the latents as if they were noisy, and an empty prompt. To it a faint mark is noise.

    Args:
        pipe: a pipeline with a `unet` of the Stable Diffusion 1 or 2 family.
        timestep: of 1000.

    Raises:
        UsageError: another pipeline.
    """

    def __init__(self, pipe: Any, timestep: int) -> None:
        if getattr(pipe, "unet", None) is None or getattr(pipe, "text_encoder_2", None) is not None:
            raise UsageError(
                "Objects are marked in the latents of Stable Diffusion 1 or 2 models; use the carrier tile."
            )
        self.pipe = pipe
        self.schedule = Schedule.of(pipe.scheduler)
        self.timestep = self.schedule.timestep(timestep)

    @cached_property
    def _prompt(self) -> Tensor:
        return plain_embeds(self.pipe, "")

    def rest(self, canvases: Tensor) -> Tensor:
        """Return the latents (B, C, h, w) of images (B, 3, H, W) in [0, 1], less their content."""
        z = encode(self.pipe.vae, canvases)
        alpha, kind = self.schedule.alpha(self.timestep), self.schedule.prediction_type
        noisy = alpha**0.5 * z
        embeds = self._prompt.expand(len(z), -1, -1)
        output = self.pipe.unet(noisy.to(embeds.dtype), self.timestep, encoder_hidden_states=embeds).sample.float()
        return z - predict_original(output[:, : z.shape[1]], noisy, NoiseLevel.from_alpha_bar(alpha), kind)


@dataclass(frozen=True, eq=False)
class CodeReader:
    """What reads the code of objects in images.

    Attributes:
        pipe: whose autoencoder and denoiser read.
        code: of the pipeline's latents.
    """

    pipe: Any
    code: ObjectCode

    @cached_property
    def guess(self) -> ContentGuess:
        """Takes the content away."""
        return ContentGuess(self.pipe, self.code.config.timestep)

    def canvas_of(self, pixels: Tensor) -> tuple[int, int]:
        """Height and width in pixels of the canvas that an image (3, H, W) is resized to."""
        return Canvas.of_vae(self.pipe.vae, self.code.config.size).of_aspect(*pixels.shape[-2:])[0]

    def field(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the field (C, h, w) of an image (3, H, W) in [0, 1], and what it was divided by, (h, w)."""
        canvas = to_canvas([pixels], self.canvas_of(pixels))
        return self.code.field(self.guess.rest(canvas)[0].to(self.code.device))


def code_pattern(key: Key, waves: int) -> Pattern:
    """Return the amplitudes with which a key's mark has each wave of the code; without the message, complex normal."""
    return drawn_pattern(key, _LABEL, waves, N_BITS)


def code_windows(height: int, width: int) -> list[Window]:
    """Return the windows of a field of a height and width in cells. They depend on nothing else."""
    windows = {(0, 0, width, height)}
    for high, wide in SHAPES:
        high, wide = min(high, height), min(wide, width)
        tops, lefts = (_starts(whole - part) for whole, part in ((height, high), (width, wide)))
        windows |= {(left, top, left + wide, top + high) for top in tops for left in lefts}
    return sorted(windows)


def _starts(last: int) -> list[int]:
    return sorted({*range(0, last + 1, _STRIDE), last})


def windows_evidence(cells: Tensor, windows: list[Window]) -> Tensor:
    """Return the evidence of windows, divided by its norm.

    Args:
        cells: (h, w, M) complex, see `ObjectCode.evidence`.
        windows: in cells.

    Returns:
        (W, M) complex, each row of norm 1; the real part of its product with a conjugated template is a correlation in
        standard deviations.
    """
    left, top, right, bottom = torch.tensor(windows, device=cells.device).unbind(1)
    sums = pad(cells.cumsum(0).cumsum(1), (0, 0, 1, 0, 1, 0))
    inside = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    return inside / torch.linalg.vector_norm(inside, dim=1, keepdim=True).clamp(min=1e-12)
