"""Attacks on images: what happens to images on the way, and what adversaries do to take marks off or to forge them.

An attack is a frozen value with a strength in its own unit. Call it on a Pillow image, a path, an array, a tensor or a
list of these; what comes in comes back:

    import torch
    from privgen.attacks import JPEG, Noise, get_attack

    images = torch.rand(2, 3, 64, 64)
    attacked = JPEG(50)(images)
    noisy = Noise(0.05)(images, generator=torch.Generator().manual_seed(0))
    cropped = get_attack("crop", strength=0.5)(images)

Kinds: "D" distortions, "P" purification and regeneration, "A" adaptive attacks, "M" attacks on models.
"""

from privgen.attacks.adaptive.averaging import AveragingForgery, AveragingRemoval, mean_residual
from privgen.attacks.adaptive.embedding import Embedding
from privgen.attacks.adaptive.examples import Examples
from privgen.attacks.adaptive.extractor import ExtractorForgery, ExtractorRemoval
from privgen.attacks.adaptive.pgd import GradientAttack
from privgen.attacks.adaptive.remarking import Remarking
from privgen.attacks.adaptive.surrogate import SurrogateForgery, SurrogateRemoval
from privgen.attacks.base import Attack, BaseAttack, Kind, ResizingAttack, Sequence
from privgen.attacks.compose import Combination, pairs_of
from privgen.attacks.distortions.canvas import AspectCrop, Border, Collage, Pad
from privgen.attacks.distortions.combinations import All, Degradation, Geometric, Photometric
from privgen.attacks.distortions.degradation import JPEG, Blur, Noise, WebP
from privgen.attacks.distortions.geometric import Crop, Erase, Flip, Rotation, Scale
from privgen.attacks.distortions.jpeg import approximate_jpeg
from privgen.attacks.distortions.photometric import Brightness, Contrast, Gamma, Grey, Hue, Saturation, Sharpness
from privgen.attacks.distortions.random_distortion import TRAINING_TABLE, Choice, RandomDistortion
from privgen.attacks.distortions.sharing import (
    Caption,
    Instagram,
    Screenshot,
    Telegram,
    UploadChain,
    WeChat,
    WhatsApp,
)
from privgen.attacks.distortions.warp import MicroWarp
from privgen.attacks.files import AttackedFile, AttackedFolder, attack_files
from privgen.attacks.model_attack import ModelAttack
from privgen.attacks.purification.classical import Median, NonLocalMeans, TotalVariation
from privgen.attacks.purification.denoiser import Denoiser, load_denoiser
from privgen.attacks.purification.diffpure import DiffPure
from privgen.attacks.purification.edge_preserving import BilateralGuided
from privgen.attacks.purification.fit import FittedAttack
from privgen.attacks.purification.gridpure import GrIDPure
from privgen.attacks.purification.impress import Impress
from privgen.attacks.purification.regeneration import Regeneration, Rinsing, VaeRoundTrip
from privgen.attacks.purification.super_resolution import SuperResolution
from privgen.attacks.registry import attack_class, get_attack, list_attacks, parameters_of, parse_attack, register


__all__ = [
    "JPEG",
    "TRAINING_TABLE",
    "All",
    "AspectCrop",
    "Attack",
    "AttackedFile",
    "AttackedFolder",
    "AveragingForgery",
    "AveragingRemoval",
    "BaseAttack",
    "BilateralGuided",
    "Blur",
    "Border",
    "Brightness",
    "Caption",
    "Choice",
    "Collage",
    "Combination",
    "Contrast",
    "Crop",
    "Degradation",
    "Denoiser",
    "DiffPure",
    "Embedding",
    "Erase",
    "Examples",
    "ExtractorForgery",
    "ExtractorRemoval",
    "FittedAttack",
    "Flip",
    "Gamma",
    "Geometric",
    "GrIDPure",
    "GradientAttack",
    "Grey",
    "Hue",
    "Impress",
    "Instagram",
    "Kind",
    "Median",
    "MicroWarp",
    "ModelAttack",
    "Noise",
    "NonLocalMeans",
    "Pad",
    "Photometric",
    "RandomDistortion",
    "Regeneration",
    "Remarking",
    "ResizingAttack",
    "Rinsing",
    "Rotation",
    "Saturation",
    "Scale",
    "Screenshot",
    "Sequence",
    "Sharpness",
    "SuperResolution",
    "SurrogateForgery",
    "SurrogateRemoval",
    "Telegram",
    "TotalVariation",
    "UploadChain",
    "VaeRoundTrip",
    "WeChat",
    "WebP",
    "WhatsApp",
    "approximate_jpeg",
    "attack_class",
    "attack_files",
    "get_attack",
    "list_attacks",
    "load_denoiser",
    "mean_residual",
    "pairs_of",
    "parameters_of",
    "parse_attack",
    "register",
]
