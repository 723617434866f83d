"""Attacks on images: frozen values that turn a batch of images into a batch of images.

    from privgen.attacks import get_attack

    attacked = get_attack("jpeg", strength=50)(images)  # (B, 3, H, W) in [0, 1]

Kinds: "D" distortion, "P" purification or regeneration, "A" adaptive, "M" model side.
"""

from privgen.attacks.averaging import AveragingForgery, AveragingRemoval, mean_residual
from privgen.attacks.base import Attack, BaseAttack, Kind
from privgen.attacks.classical import Median, NonLocalMeans, TotalVariation
from privgen.attacks.combinations import All, Degradation, Geometric, Photometric
from privgen.attacks.compose import Combination, Sequence
from privgen.attacks.degradation import JPEG, Blur, Noise, WebP
from privgen.attacks.denoiser import Denoiser, load_denoiser
from privgen.attacks.diffpure import DiffPure
from privgen.attacks.edge_preserving import BilateralGuided
from privgen.attacks.embedding import Embedding
from privgen.attacks.examples import Examples
from privgen.attacks.extractor import ExtractorForgery, ExtractorRemoval
from privgen.attacks.folder import AttackedFile, AttackedFolder, attack_files
from privgen.attacks.geometric import Crop, Erase, Rotation
from privgen.attacks.gridpure import GrIDPure
from privgen.attacks.jpeg import approximate_jpeg
from privgen.attacks.model_attack import ModelAttack
from privgen.attacks.neural_codec import NeuralCodec, NeuralCodecRoundTrip, load_neural_codec
from privgen.attacks.pgd import GradientAttack
from privgen.attacks.photometric import Brightness, Contrast, Gamma, Hue, Saturation, Sharpness
from privgen.attacks.random_distortion import TRAINING_TABLE, Choice, RandomDistortion
from privgen.attacks.regeneration import Regeneration, Rinsing, VaeRoundTrip
from privgen.attacks.registry import attack_class, get_attack, list_attacks, parse_attack, register
from privgen.attacks.super_resolution import SuperResolution
from privgen.attacks.surrogate import SurrogateForgery, SurrogateRemoval


__all__ = [
    "JPEG",
    "TRAINING_TABLE",
    "All",
    "Attack",
    "AttackedFile",
    "AttackedFolder",
    "AveragingForgery",
    "AveragingRemoval",
    "BaseAttack",
    "BilateralGuided",
    "Blur",
    "Brightness",
    "Choice",
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
    "Gamma",
    "Geometric",
    "GrIDPure",
    "GradientAttack",
    "Hue",
    "Kind",
    "Median",
    "ModelAttack",
    "NeuralCodec",
    "NeuralCodecRoundTrip",
    "Noise",
    "NonLocalMeans",
    "Photometric",
    "RandomDistortion",
    "Regeneration",
    "Rinsing",
    "Rotation",
    "Saturation",
    "Sequence",
    "Sharpness",
    "SuperResolution",
    "SurrogateForgery",
    "SurrogateRemoval",
    "TotalVariation",
    "VaeRoundTrip",
    "WebP",
    "approximate_jpeg",
    "attack_class",
    "attack_files",
    "get_attack",
    "list_attacks",
    "load_denoiser",
    "load_neural_codec",
    "mean_residual",
    "parse_attack",
    "register",
]
