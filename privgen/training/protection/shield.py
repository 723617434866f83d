"""Training of the shield, the network that protects photographs in one pass.

Each step draws one or two of the autoencoders. The network's change is scaled to a PSNR, added, and sent through a
distortion, as an upload would. The loss falls as the latents of the distorted images move away from those of the same
images without the change, in units of the latents' standard deviation, and as the decoder makes something else of
them. It rises where the eye sees the change, and where the change repeats every few pixels.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from privgen.data.photos import load_photos, random_crop
from privgen.data.scenes import PREVIEW_SEED, SIZE, draw_scene
from privgen.data.sheets import picture
from privgen.diffusion.latents import decode, encode
from privgen.errors import UsageError
from privgen.hub import EMBEDDED, load_pipeline
from privgen.io.images import load_image
from privgen.io.pixels import resize
from privgen.io.residual import at_psnr
from privgen.metrics.visibility import texture_factor, visible_change
from privgen.models.autoencoder import load_autoencoder
from privgen.models.initialise import seeded_weights
from privgen.models.loading import quiet_loading
from privgen.models.shield import Shield
from privgen.protection.shield import load_shield, shield_pattern
from privgen.training.distortions import training_distortion
from privgen.training.loop import Batch, Task, sample_generator
from privgen.training.scene_latents import scene_seed


_STATISTICS = 8  # crops from which the spread of latents is estimated
_VISIBLE_AT = 36.0  # PSNR at which the eye judges, in dB, whatever the PSNR of the step
_SEEN = (2.5, 2.0)  # change that the eye may see in smooth areas, and how much more in texture
_MOST_SEEN, _TOP = 4.0, 0.02  # change that the eye may see where it sees most, and the fraction of those pixels
_PERIODS = (4, 8)  # sides in pixels of the tiles whose repetition is punished
_WINDOW = 32  # side in pixels of the area in which a pattern must not repeat
_HALF_SIZES = (0.5, 1.25)  # range of the factors by which images are resized
_WEIGHT = 2.5  # of a shift by one standard deviation, against a factor e in what the decoder makes of it
_RESIZED_TO = 8  # multiple of pixels


@dataclass(frozen=True)
class ShieldRecipe:
    """A shield, the autoencoders whose latents it shifts, and its training data.

    Attributes:
        autoencoders: folders or Hub ids of autoencoders; "mini" is that of the embedded model.
        encoders_a_step: how many of them a step uses, drawn at random.
        channels: width of the network.
        dilations: see `privgen.models.shield.Shield`.
        crop: side in pixels of the images that it is trained on, a multiple of 16.
        photo_fraction: fraction of these that come from photographs; the others come from scenes.
        psnr_db: range of the quality of protected images in training.
        distortions: what the shift should survive; see `privgen.training.distortions`.
        distortion_scale: scales the strengths of the distortions, from 0 to 1.
        resized: fraction of the steps in which images are resized before they are encoded.
        decoded: weight of what the decoder makes of the latents, against the shift of the latents.
        decode_every: steps between those that decode.
        visible: weight of what the eye sees.
        pattern: weight of what repeats every few pixels.
        toward: image file whose latents the latents move toward, the same for all images; None moves them away from
            where they are.
        start: folder of a shield to go on from; None starts with random weights.
        bfloat16: let the autoencoders compute in bfloat16, which is faster on many processors.
        photos: folder of photographs.

    Raises:
        UsageError: no autoencoder, or a value out of its range.
    """

    autoencoders: tuple[str, ...] = ("mini",)
    encoders_a_step: int = 1
    channels: int = 48
    dilations: tuple[int, ...] = (1, 2, 4, 1, 2, 1)
    crop: int = 128
    photo_fraction: float = 0.75
    psnr_db: tuple[float, ...] = (35.0, 37.0)
    distortions: tuple[str, ...] = ("jpeg",)
    distortion_scale: float = 0.5
    resized: float = 0.1
    decoded: float = 0.25
    decode_every: int = 3
    visible: float = 2.0
    pattern: float = 1.0
    toward: Path | None = None
    start: Path | None = None
    bfloat16: bool = True
    photos: Path = Path("privgen/data/photos/train")

    def __post_init__(self) -> None:
        if not self.autoencoders:
            raise UsageError('shield.autoencoders must name at least one autoencoder, such as "mini".')
        if not 1 <= self.encoders_a_step <= len(self.autoencoders):
            raise UsageError(f"shield.encoders_a_step must be 1 to {len(self.autoencoders)}, the autoencoders named.")
        if len(self.psnr_db) != 2 or not 0 < self.psnr_db[0] <= self.psnr_db[1]:
            raise UsageError(f"shield.psnr_db must be two qualities, the lower one first, not {list(self.psnr_db)}.")
        if self.crop < 32 or self.crop % 16:
            raise UsageError(f"shield.crop must be a multiple of 16 and at least 32, not {self.crop}.")
        if self.decode_every < 1:
            raise UsageError(f"shield.decode_every must be at least 1, not {self.decode_every}.")


class ShieldTask(Task):
    """Trains a shield to shift the latents of frozen autoencoders under a budget of visibility."""

    def __init__(self, recipe: ShieldRecipe, seed: int) -> None:
        super().__init__()
        self.recipe, self.seed = recipe, seed
        with seeded_weights(seed):
            network = Shield(channels=recipe.channels, dilations=recipe.dilations)
        if recipe.start is not None:
            network.load_state_dict(load_shield(recipe.start).state_dict())
        self.network = network.to(memory_format=torch.channels_last)
        self.photos = load_photos(recipe.photos) if recipe.photo_fraction > 0 else ()
        self.distortion = training_distortion(recipe.distortions, recipe.distortion_scale)
        self.decoy = None if recipe.toward is None else load_image(recipe.toward).pixels[None]
        precision = torch.bfloat16 if recipe.bfloat16 else torch.float32
        # A list that is no module: the loop neither trains nor moves it.
        with quiet_loading():  # Diffusers warns of a precision that only matters for other models
            self.autoencoders = [
                load_frozen(name).to(precision, memory_format=torch.channels_last) for name in recipe.autoencoders
            ]
        crops = torch.stack([torch.from_numpy(self._crop(-1 - i)) for i in range(_STATISTICS)])
        with torch.no_grad():
            self.spreads = [float(encode(vae, crops).std()) for vae in self.autoencoders]

    def batch(self, indices: list[int]) -> Batch:
        pixels = torch.stack([torch.from_numpy(self._crop(i)) for i in indices])
        generators = [sample_generator(self.seed, i) for i in indices]
        psnr = torch.cat([torch.rand(1, generator=generator) for generator in generators])
        noise = torch.stack([torch.randn(pixels[0, :1].shape, generator=generator) for generator in generators])
        low, high = self.recipe.psnr_db
        # The seed is one number for the step, so that images of one batch go through the same autoencoders.
        first = torch.tensor([min(indices)])
        return {"pixels": pixels, "noise": noise, "psnr": low + (high - low) * psnr, "seed": first}

    def _crop(self, index: int) -> NDArray[np.float32]:
        # NumPy seeds must not be negative.
        rng = np.random.Generator(np.random.PCG64([self.seed, index % 2**62]))
        side = self.recipe.crop
        if rng.random() < self.recipe.photo_fraction:
            return random_crop(self.photos, side, rng)
        pixels = draw_scene(scene_seed(self.seed, index % 2**31), size=max(SIZE, side + 32)).pixels
        top, left = rng.integers(pixels.shape[1] - side + 1, size=2)
        return np.ascontiguousarray(pixels[:, top : top + side, left : left + side])

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        pixels, psnr = batch["pixels"].contiguous(memory_format=torch.channels_last), batch["psnr"]
        number = int(batch["seed"][0])
        generator = sample_generator(self.seed + 1, number)
        pattern = shield_pattern(self.network, pixels, batch["noise"])
        changed = at_psnr(pixels, pattern, psnr)
        seed = int(torch.randint(2**31, (1,), generator=generator))
        both = [self._distort(images, seed) for images in (changed, pixels)]
        chosen = torch.randperm(len(self.autoencoders), generator=generator)[: self.recipe.encoders_a_step].tolist()
        decoding = number // len(pixels) % self.recipe.decode_every == 0
        shifts, spoilt = [], []
        for i in chosen:
            shift, spoilage = self._shift(i, *both, decoding=decoding and i == chosen[0])
            shifts.append(shift)
            spoilt += [] if spoilage is None else [spoilage]
        shift = torch.stack(shifts).mean()
        visible = self._visible(pixels, changed, psnr)
        repeated = torch.stack([repetition(pattern, period).clamp(min=0) for period in _PERIODS]).sum()
        loss = -shift + self.recipe.visible * visible + self.recipe.pattern * repeated
        if spoilt:
            loss = loss - self.recipe.decoded * torch.stack(spoilt).mean()
        return {
            "loss": loss,
            "shift": shift.detach() / _WEIGHT,
            "visible": visible.detach(),
            "repeated": repeated.detach(),
        }

    def _distort(self, images: Tensor, seed: int) -> Tensor:
        """Distort images in a way that depends on the seed only: each by a distortion, and then all by a resize."""
        if self.distortion is not None:
            generators = [sample_generator(seed, i) for i in range(len(images))]
            images = self.distortion.apply(images, generators)
        resized, factor, top, left = torch.rand(4, generator=sample_generator(seed, len(images))).tolist()
        # A random origin, so that no pattern can rely on where the autoencoder's cells lie.
        side = images.shape[-1] - 8
        y, x = int(top * 9), int(left * 9)
        images = images[..., y : y + side, x : x + side]
        if resized < self.recipe.resized:
            low, high = _HALF_SIZES
            new = round(side * (low + (high - low) * factor) / _RESIZED_TO) * _RESIZED_TO
            images = resize(images, (new, new)).clamp(0, 1)
        return images

    def _shift(self, i: int, changed: Tensor, clean: Tensor, *, decoding: bool) -> tuple[Tensor, Tensor | None]:
        """The shift of latents, and the logarithm of what it does to the decoder's images if it is asked for."""
        vae, spread = self.autoencoders[i].to(clean.device), self.spreads[i]
        with torch.no_grad():
            before = encode(vae, clean)
        after = encode(vae, changed)
        moved = after - before
        if self.decoy is None:
            # Not its logarithm, which would spend most on the latents that are hardest to move.
            shift = _WEIGHT * (moved.square().flatten(1).mean(1) + 1e-8).sqrt().mean() / spread
        else:
            with torch.no_grad():
                way = encode(vae, resize(self.decoy, clean.shape[-2:]).clamp(0, 1)) - before
            unit = way / way.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
            shift = ((moved * unit).mean(dim=(1, 2, 3)) / spread).mean() * _WEIGHT
        if not decoding or self.recipe.decoded == 0:
            return shift, None
        with torch.no_grad():
            plain = decode(vae, before)
        return shift, _log_size(decode(vae, after) - plain)

    def _visible(self, pixels: Tensor, changed: Tensor, psnr: Tensor) -> Tensor:
        """How far the change exceeds what the eye may see, at one PSNR for all images."""
        gain = 10 ** ((psnr - _VISIBLE_AT) / 20)
        seen = visible_change(changed, pixels) * gain[:, None, None, None]
        with torch.no_grad():
            least, more = _SEEN
            allowed = least + more * ((texture_factor(pixels) - 0.5) / 0.5).clamp(0, 1)
        pixel_by_pixel = (seen / allowed - 1).clamp(min=0).square().mean()
        flat = seen.flatten(1)
        most = flat.topk(max(1, round(_TOP * flat.shape[1])), dim=1).values.mean(1)
        return pixel_by_pixel + (most / _MOST_SEEN - 1).clamp(min=0).mean()

    @torch.no_grad()
    def preview(self) -> Image.Image:
        """Draw pictures, the same protected at 36 dB, and ten times the difference around grey."""
        side = 2 * self.recipe.crop
        rng = np.random.Generator(np.random.PCG64(0))
        scenes = [draw_scene(PREVIEW_SEED + i, size=side).pixels for i in range(2)]
        crops = [random_crop(self.photos, side, rng) for _ in range(2)] if self.photos else []
        pixels = torch.from_numpy(np.stack(scenes + crops)).to(self.network.device)
        noise = torch.randn(pixels[:, :1].shape, generator=sample_generator(0, 0)).to(pixels)
        pattern = shield_pattern(self.network, pixels, noise)
        changed = at_psnr(pixels, pattern, pixels.new_full((len(pixels),), _VISIBLE_AT))
        rows = [pixels, changed, (0.5 + 10 * (changed - pixels)).clamp(0, 1)]
        sheet = torch.cat([torch.cat(list(row), dim=-1) for row in rows], dim=-2)
        return picture(sheet.cpu().numpy())

    def export(self, folder: Path) -> None:
        """Save the network in half precision, in the form that `privgen.protection.shield.load_shield` reads."""
        shipped = Shield.from_config(self.network.config)
        shipped.load_state_dict(self.network.state_dict())
        shipped.half().save_pretrained(folder)


def load_frozen(name: str) -> Any:
    """Load an autoencoder that is to be shifted: that of an embedded model, or one of a folder or the Hub."""
    if name in EMBEDDED:
        return load_pipeline(name).vae.eval().requires_grad_(False)
    return load_autoencoder(name)


def repetition(pattern: Tensor, period: int) -> Tensor:
    """The fraction of a pattern's energy that repeats from tile to tile, in windows of 32 x 32 pixels.

    Args:
        pattern: (B, 3, H, W), with sides of at least 32.
        period: side in pixels of the tile; it divides 32.

    Returns:
        A number: 1 for a pattern that repeats exactly, and about 0 for noise.
    """
    height, width = (length // _WINDOW * _WINDOW for length in pattern.shape[-2:])
    rows, columns, count = height // _WINDOW, width // _WINDOW, _WINDOW // period
    tiles = pattern[..., :height, :width].reshape(*pattern.shape[:2], rows, count, period, columns, count, period)
    fraction = tiles.mean(dim=(3, 6)).square().mean() / (tiles.square().mean() + 1e-12)
    return (fraction - 1 / count**2) / (1 - 1 / count**2)


def _log_size(values: Tensor) -> Tensor:
    """The logarithm of the root mean square of each sample (B, ...), averaged over samples."""
    return 0.5 * (values.square().flatten(1).mean(1) + 1e-8).log().mean()
