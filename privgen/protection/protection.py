"""The front door of protection: photographs in, photographs that are harder to learn from out."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from privgen.hub import Placement
from privgen.io.fingerprints import seed_from
from privgen.io.image_like import open_images
from privgen.io.images import LoadedImage
from privgen.io.pixels import floats
from privgen.io.residual import add_residual, check_pixels
from privgen.metrics.quality import ssim
from privgen.metrics.visible_difference import visible_de_p99
from privgen.protection.method import PSNR, Method
from privgen.protection.registry import method_class
from privgen.protection.surrogate import Surrogate


@dataclass(frozen=True)
class Protected:
    """A protected image, and how much it differs from the original.

    Example:
        >>> import torch
        >>> from privgen import Protection
        >>> safe = Protection.from_pretrained(method="noise").protect(torch.full((3, 64, 64), 0.5), psnr=30)
        >>> print(f"{safe.psnr:.1f} dB, visible: {safe.visible_de_p99 > 1}")
        30.0 dB, visible: True

    Attributes:
        image: what came in, protected: the same type, size and mode. A path gives a Pillow image.
        psnr: against the original, in dB; infinite where nothing changed.
        ssim: structural similarity, 1 for equal images; None for images with a side below 11 pixels.
        visible_de_p99: colour difference as the eye sees it that 99 % of the pixels stay below, in CIELAB's Delta E.
        seconds: that the protection took.
    """

    image: Any = field(repr=False)
    psnr: float
    ssim: float | None
    visible_de_p99: float
    seconds: float


class Protection:
    """Changes photographs faintly, so that a personalised diffusion model learns less from them.

    It does not stop a patient adversary: more training, purification of the images, or clean images in the mix undo
    much of it. Measure it on your own images with `privgen protect --check`.

    Example:
        >>> from PIL import Image
        >>> from privgen import Protection
        >>> photo = Image.linear_gradient("L").convert("RGB")
        >>> safe = Protection.from_pretrained(method="noise").protect(photo, psnr=36)
        >>> safe.image.size, round(safe.psnr)
        ((256, 256), 36)

    Args:
        method: how the change is computed.
        surrogate: the models that it is computed against.
    """

    def __init__(self, method: Method, surrogate: Surrogate | None = None) -> None:
        self.method = method
        self.surrogate = surrogate or Surrogate()

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] = "mini",
        *,
        method: str = "shield",
        vae: str | os.PathLike[str] | None = None,
        autoencoders: Sequence[str | os.PathLike[str]] = (),
        device: str = "auto",
        dtype: str = "auto",
        **settings: Any,
    ) -> "Protection":
        """The protection by a method, against a model. Nothing is loaded before it is needed.

        Args:
            model: an embedded model's name, a folder that a pipeline was saved to, or a Hub id. The method "shield"
                does not look at it.
            method: a name of `privgen.protection.registry.METHODS`.
            vae: folder or Hub id of an autoencoder, for a model that has none of its own.
            autoencoders: folders or Hub ids of autoencoders, for methods that shift latents.
            device: see `privgen.hub.resolve_device`.
            dtype: of the pipeline's weights, see `privgen.hub.resolve_dtype`; but "auto" is float32, because gradients
                through float16 lose what is small.
            **settings: of the method, such as `steps`; see its class.

        Raises:
            UsageError: there is no such method.
            TypeError: the method has no such setting.
            ValueError: a setting is out of its range.
        """
        placement = Placement(device, dtype)
        surrogate = Surrogate(os.fspath(model), vae, tuple(autoencoders), placement)
        return cls(method_class(method)(**settings), surrogate)

    def __repr__(self) -> str:
        return f"Protection({self.method!r}, {self.surrogate!r})"

    def protect(self, images: Any, *, psnr: float = PSNR, seed: int = 0) -> Any:
        """Protect images at their own sizes.

        Args:
            images: a Pillow image, a path, an array or a tensor; a list of these; or a batch. See
                `privgen.io.image_like.ImagesLike`.
            psnr: quality of the result against the image, in dB; higher is fainter, and protects less.
            seed: of all randomness. Image i of several draws from `seed` and i.

        Returns:
            For one image a `Protected`, with `.image`, `.psnr` and `.ssim`. For several a list of them.

        Raises:
            PrivgenError: an image or a model cannot be read.
            ValueError: an array or tensor of another shape, type or range, or a PSNR that is not above 0.
        """
        given = open_images(images)
        changed = [
            self.on_loaded(image, levels, psnr=psnr, seed=seed_from(seed, i))
            for i, (image, levels) in enumerate(zip(given.images, given.levels, strict=True))
        ]
        restored = given.restore([pixels for pixels, _ in changed])
        parts = [restored] if given.single else list(restored)
        found = [Protected(part, **figures) for part, (_, figures) in zip(parts, changed, strict=True)]
        return found[0] if given.single else found

    @torch.no_grad()
    def on_loaded(
        self, image: LoadedImage, levels: int | None, *, psnr: float, seed: int
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Protect one decoded image.

        Args:
            image: to protect.
            levels: steps of its scale, such as 255; None for pixels that are not rounded.
            psnr: see `protect`.
            seed: of all randomness.

        Returns:
            The pixels (3, H, W), floats in [0, 1] or samples, and the figures of `Protected`.
        """
        started = time.perf_counter()
        pixels = check_pixels(image.at_levels(levels))
        generator = torch.Generator().manual_seed(seed)
        change = self.method.change(floats(pixels)[None], self.surrogate, 10 ** (-psnr / 20), generator)
        result = add_residual(pixels, change[0], psnr=psnr, grey=image.grey, levels=levels)
        seconds = time.perf_counter() - started
        large_enough = min(pixels.shape[-2:]) >= 11
        figures = {
            "psnr": result.psnr,
            "ssim": float(ssim(result.pixels[None], pixels[None])) if large_enough else None,
            "visible_de_p99": visible_de_p99(result.pixels, pixels),
            "seconds": seconds,
        }
        return result.pixels, figures
