"""Write the code of one object into one image, in rounds: it is solved for, read back, and fitted by gradient."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, softplus

from privgen.diffusion.latents import decode
from privgen.diffusion.unrolled_ddim import frozen
from privgen.io.pixels import resize
from privgen.watermark.key import Key
from privgen.watermark.objects.carrier import Place, Seen
from privgen.watermark.objects.code import CodeReader, code_pattern, code_windows
from privgen.watermark.objects.masks import at_size
from privgen.watermark.objects.windows import bit_logits


_RIDGE = 0.03  # of the mean energy of a pattern, below which a pattern is not cheaper
_STEP, _MOMENTUM, _STEEP = 0.2, 0.5, 2.0  # of gradient descent; and how steeply a bit that is read badly counts
_TARGETS = (0.3, 0.5, 0.7, 0.9, 1.2)  # that the solver tries: how strong the mark is to be, over what is in reach
_HALVINGS = 30  # of the interval in which the solver looks for the energy


@dataclass(frozen=True, eq=False)
class HostImage:
    """What the objects of one image share: its latents, what they decode to, its field and the field's divisor."""

    plain: Tensor
    z: Tensor
    decoded: Tensor
    field: Tensor
    divisor: Tensor

    @property
    def size(self) -> tuple[int, int]:
        return self.z.shape[-2], self.z.shape[-1]


class PatternWriter(Protocol):
    """What writes patterns into latents: see `privgen.watermark.objects.code_carrier.LatentCarrier`."""

    reader: CodeReader
    """Of the latents."""
    steps: int
    """Of gradient descent."""
    closed_rounds: int
    """Rounds in which the loudness of patterns is solved for."""
    loudest: float
    """Quality in dB below which a pattern is not asked for; what is written is made louder in pixels instead."""

    def basis(self, cells: Tensor) -> Tensor:
        """Return the patterns that can be written inside a mask: (K, C, h, w).

        Args:
            cells: (h, w), the fraction of each cell that the mask covers.
        """
        ...

    def freed(self, root: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
        """Return what gradient descent may change: a matrix, and the numbers that it turns into those of `change`.

        Args:
            root: (K, K), turns numbers of a unit of energy into the loudness of patterns.
            unit: (K,), the solution in closed form.

        Returns:
            The matrix, or (1,) if the numbers are those of `change` as they are; and the numbers.
        """
        ...

    def change(self, z: Tensor, loud: Tensor, basis: Tensor) -> Tensor:
        """Return the change of latents (1, C, h, w) that is written for the loudness (K,) of patterns (K, C, h, w)."""
        ...


class CodeWriter:
    """Writes the code of one object, in rounds.

    What is written is a sum of patterns in the latents. To a reader its evidence is, on average, a linear function of
    their loudness, plus that of the host, the image without the mark. The loudness is solved for so that the sum
    points along the template of the key, as far as the quality allows. Reading back says what the average is not.
    """

    def __init__(self, carrier: PatternWriter, place: Place, key: Key, image: HostImage) -> None:
        self.carrier, self.place, self.image = carrier, place, image
        code, size = carrier.reader.code, image.size
        self.pattern = code_pattern(key, code.config.waves)
        self.cells = cells_of(place.mask, size).to(image.z.device)
        # Bits are read inside the mask, and a mark is found in a window.
        self.weights = torch.stack([self.cells, _nearest_window(self.cells)])
        self.wanted = self._evenly_loud().repeat(len(self.weights))
        self.basis = carrier.basis(self.cells) * self.cells
        seen = code.seen(self.basis) / image.divisor
        self.answer = torch.cat([_flat(code.sums(seen, weight)) for weight in self.weights], 1).T.double()
        paid = code.paid(self.basis).flatten(1)
        energy = paid @ self.basis.flatten(1).T
        energy = ((energy + energy.T) / 2).double().cpu()
        values, vectors = torch.linalg.eigh(energy)
        self.root = vectors * values.clamp(min=_RIDGE * float(values.mean())).rsqrt()  # loudness of unit energy
        self.host = self._evidence(image.field)
        psnr = max(place.psnr, carrier.loudest)
        self.energy = float(10 ** (-psnr / 10) * self.cells.sum() * image.decoded[0].numel() / size[0] / size[1])
        self.round = 0
        self.unit = self._solved()
        self.root, self.unit = carrier.freed(self.root, self.unit)
        self.size = self.unit.norm()
        self.momentum = torch.zeros_like(self.unit)

    @property
    def loud(self) -> Tensor:
        """The loudness of the patterns."""
        return (self.root @ self.unit if self.root.ndim == 2 else self.unit).float()

    @torch.no_grad()
    def residual(self) -> Tensor:
        return self._residual(self.loud)

    def _residual(self, loud: Tensor) -> Tensor:
        size = self.place.mask.shape
        marked = self.image.z + self.cells * self.carrier.change(self.image.z, loud, self.basis)
        change = decode(self.carrier.reader.pipe.vae, marked) - self.image.decoded
        return resize(change, (size[0], size[1]))[0][:, *self.place.crop].to(self.place.mask.device)

    def balance(self, seen: Seen, gain: float) -> bool:
        self.round += 1
        if self.round >= self.carrier.closed_rounds:
            self._descend(seen, gain)
        else:
            self._solve_again(seen.evidence.detach(), gain)
        return False

    def _descend(self, seen: Seen, gain: float) -> None:
        """Take one step down the gradient of what is read badly; the energy stays as it is."""
        assert seen.pixels is not None
        pipe = self.carrier.reader.pipe
        with torch.inference_mode(False), torch.enable_grad(), frozen([pipe.vae, pipe.unet, pipe.text_encoder]):
            [slope] = torch.autograd.grad(self._loss(seen.evidence), seen.pixels, retain_graph=True)
            loud = self.loud.requires_grad_()
            change, mask = self._residual(loud), self.place.mask[self.place.crop]
            inside, written = slope[:, *self.place.crop] * mask, change.detach() * mask
            # What only makes the change larger is undone when it is scaled to its quality.
            inside = inside - (inside * written).sum() / written.square().sum().clamp(min=1e-12) * written
            [slope] = torch.autograd.grad((gain * change * inside).sum(), loud)
        unit = self.root.T @ slope.double() if self.root.ndim == 2 else slope.double()
        self.momentum = _MOMENTUM * self.momentum + unit / unit.norm().clamp(min=1e-12)
        done = (self.round - self.carrier.closed_rounds) / max(1, self.carrier.steps)
        moved = self.unit - _STEP * (1 - 0.7 * done) * self.size * self.momentum
        self.unit = moved / moved.norm() * self.size

    def _loss(self, field: Tensor) -> Tensor:
        """How badly the bits are read inside the mask, and the key in the window."""
        code, signs = self.carrier.reader.code, (2 * self.pattern.bits - 1).float()
        inside, window = (code.sums(field, weight).cpu() for weight in self.weights)
        logits = signs * bit_logits(inside, self.pattern.noise, self.pattern.owner, len(signs))
        template = self.pattern.template
        sizes = torch.linalg.vector_norm(window) * torch.linalg.vector_norm(template)
        return softplus(-_STEEP * logits).mean() - (window * template.conj()).real.sum() / sizes

    @torch.no_grad()
    def _solve_again(self, field: Tensor, gain: float) -> None:
        """Solve for the loudness with what was learnt of the host and its answer."""
        read = self._evidence(field)
        expected = gain * self.answer @ self.loud.double()
        if self.round == 1:  # an image's answer is smaller than the average one
            factor = float((read - self.host) @ expected / expected.square().sum().clamp(min=1e-9))
            factor = min(max(factor, 0.2), 1.5)
            self.answer, expected = factor * self.answer, factor * expected
        self.host = read - expected
        self.unit = self._solved()

    def _evidence(self, field: Tensor) -> Tensor:
        sums = [self.carrier.reader.code.sums(field, weight) for weight in self.weights]
        return torch.cat([_flat(values) for values in sums]).double()

    def _evenly_loud(self) -> Tensor:
        """The template of the key, with all bits equally loud, though their waves are not."""
        template, owner = self.pattern.template, self.pattern.owner
        power = torch.zeros(len(self.pattern.bits)).index_add(0, owner, template.abs().square())
        return _flat(template / power.sqrt()[owner]).double()

    def _solved(self) -> Tensor:
        """What makes the evidence most like the template, at the quality's energy, in units of the root of energy."""
        answer, host, wanted = self.answer @ self.root, self.host, self.wanted
        left, sizes, right = torch.linalg.svd(answer, full_matrices=False)
        best, most = torch.zeros(answer.shape[1], dtype=torch.float64), -1.0
        reach = float((answer @ (answer.T @ wanted)).norm() / (answer.T @ wanted).norm() * self.energy**0.5)
        for factor in _TARGETS:
            goal = factor * reach / float(wanted.norm()) * wanted - host
            along = sizes * (left.T @ goal)
            low, high = 1e-9, 1e9
            for _ in range(_HALVINGS):
                ridge = (low * high) ** 0.5
                unit = right.T @ (along / (sizes.square() + ridge))
                low, high = (ridge, high) if float(unit.square().sum()) > self.energy else (low, ridge)
            total = host + answer @ unit
            like = float(total @ wanted / total.norm())
            if like > most:
                best, most = unit, like
        return best


def cells_of(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """The fraction of each cell that a mask (H, W) covers."""
    return adaptive_avg_pool2d(at_size(mask, (8 * size[0], 8 * size[1]))[None], size)[0]


def _nearest_window(cells: Tensor) -> Tensor:
    """The window that overlaps most with a mask, as a plane of 0 and 1."""
    planes = []
    for left, top, right, bottom in code_windows(*cells.shape):
        plane = torch.zeros_like(cells)
        plane[top:bottom, left:right] = 1
        planes.append(plane)
    windows = torch.stack(planes)
    both, either = torch.minimum(windows, cells).sum((1, 2)), torch.maximum(windows, cells).sum((1, 2))
    return windows[int((both / either).argmax())]


def _flat(values: Tensor) -> Tensor:
    """Complex numbers (..., M) as real ones (..., 2 M), on the CPU."""
    return torch.view_as_real(values.cpu().resolve_conj()).flatten(-2)
