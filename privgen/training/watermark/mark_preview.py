"""Pictures of marks, for the previews of training runs."""

import torch
from PIL import Image
from torch import Tensor

from privgen.data.sheets import picture


def rows_of_marks(clean: Tensor, marked: Tensor) -> Image.Image:
    """Draw images, the same images with marks, and ten times the difference; both are (B, 3, H, W) in [0, 1]."""
    rows = [clean, marked, 0.5 + 10 * (marked - clean)]
    pixels = torch.cat([torch.cat(list(row.clamp(0, 1)), dim=2) for row in rows], dim=1)
    return picture(pixels.cpu().numpy())
