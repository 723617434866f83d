"""Say which part of an image belongs to which key, by the code of objects in its latents, without a mask."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from privgen.errors import UsageError
from privgen.watermark.key import Key
from privgen.watermark.objects.code import CodeReader, code_pattern, code_windows, windows_evidence
from privgen.watermark.objects.outline import HEAT, Outline, outline_of_product
from privgen.watermark.objects.read import FPR, Inside, Located, Locations, chance, largest, located, nowhere
from privgen.watermark.objects.windows import bit_logits
from privgen.watermark.read.p_values import adjust
from privgen.watermark.tile.pattern import Pattern


class CodeLocator:
    """Looks for the codes of keys in parts of images.

    Args:
        reader: of a model's latents.
        keys: at least one.
        fpr: probability that some key is found in an image without marks.

    Raises:
        UsageError: no key, or a rate that is not in (0, 1).
    """

    def __init__(self, reader: CodeReader, keys: Sequence[Key], fpr: float = FPR) -> None:
        if not keys:
            raise UsageError("Name at least one key.")
        if not 0 < fpr < 1:
            raise UsageError(f"expected a false-positive rate in (0, 1), got {fpr}")
        self.reader, self.fpr = reader, fpr
        self.patterns = [code_pattern(key, reader.code.config.waves) for key in keys]
        self.templates = torch.stack([pattern.template for pattern in self.patterns])

    @torch.no_grad()
    def __call__(self, pixels: Tensor, *, search: bool = False) -> Locations:
        """Look for the keys in an image (3, H, W) in [0, 1]; see `privgen.watermark.objects.read.locate`.

        Objects are looked for where they were marked, even if a search is asked for.
        """
        field, _ = self.reader.field(pixels)
        cells = self.reader.code.evidence(field)
        size = (cells.shape[0], cells.shape[1])
        windows = code_windows(*size)
        z, place = largest(self.templates, windows_evidence(cells, windows))
        p_raw = chance(z, len(windows))
        p_values = adjust(p_raw, "holm")

        def read_key(k: int) -> Located:
            pattern, start, p = self.patterns[k], windows[int(place[k])], float(p_values[k])
            outline, inside = nowhere(start, size), None
            if p <= self.fpr:
                outline = _outline(cells, pattern, start)
                logits = logits_in(cells, adaptive_avg_pool2d(outline.mask[None], size)[0], pattern)
                inside = Inside((logits > 0).long(), logits)
            return located(pattern, outline, (float(p_raw[k]), p), inside)

        detected = {k: read_key(k) for k in np.flatnonzero(p_values <= self.fpr).tolist()}
        return Locations(p_raw, detected, read_key)


def logits_in(cells: Tensor, mask: Tensor, pattern: Pattern) -> Tensor:
    """Return what cells (h, w, M) say of each bit of a key inside a mask (h, w), in standard deviations."""
    values = (cells * mask.to(cells.device)[..., None]).sum((0, 1)).cpu()
    return bit_logits(values, pattern.noise, pattern.owner, len(pattern.bits))


def _outline(cells: Tensor, pattern: Pattern, start: tuple[int, int, int, int]) -> Outline:
    finer = max(1, HEAT // min(cells.shape[:2]))
    product = (cells * pattern.template.to(cells.device).conj()).sum(2).real
    product = product.repeat_interleave(finer, 0).repeat_interleave(finer, 1)
    left, top, right, bottom = (finer * edge for edge in start)
    return outline_of_product(product, (left, top, right, bottom))
