"""The default protection: one forward pass of a small network shifts what several autoencoders see."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from privgen.diffusion.latents import encode
from privgen.errors import PrivgenError, UsageError
from privgen.hub import resolve_device
from privgen.io.images import load_image
from privgen.io.pixels import resize
from privgen.models.loading import explained, quiet_loading
from privgen.models.shield import Shield
from privgen.protection.descent import descend_in_ball, into_ball
from privgen.protection.method import Method
from privgen.protection.surrogate import Surrogate, to_working_size
from privgen.protection.visibility import TOLERANCE_REACH, tolerance


SHIPPED = Path(__file__).parents[1] / "models" / "shield"
"""Folder of the network that ships."""

_LEAST_SIDE = 16  # pixels
