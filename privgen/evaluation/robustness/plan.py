"""What a robustness evaluation measures: plans, presets, and attacks with the number of images for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from privgen.attacks import (
    Attack,
    BaseAttack,
    DiffPure,
    GrIDPure,
    Regeneration,
    Rinsing,
    SuperResolution,
    VaeRoundTrip,
    list_attacks,
    load_denoiser,
)
from privgen.attacks.base import as_label
from privgen.errors import PrivgenError, UsageError
from privgen.evaluation.watermark.model import WatermarkModel


@dataclass(frozen=True)
class Preset:
    """How much is measured.

    Attributes:
        name: its name on the command line.
        n: images.
        ends: images for distortions at both ends of their range; 0 leaves out these strengths.
        few: images for attacks that take tenths of a second for an image: classical denoisers, regeneration.
        fewest: images for attacks that take seconds for an image: purification by a pixel denoiser.
        slow: images for slow methods; 0 leaves out these methods.
        negatives: images without a mark that go through every attack.
        carriers: how many of the model's carriers are measured, the default one first.
        more: strengths of attacks beside those of `ALWAYS`.
    """

    name: str
    n: int
    ends: int
    few: int
    fewest: int
    slow: int
    negatives: int
    carriers: int
    more: dict[str, tuple[float, ...]] = field(default_factory=dict)


_MORE: dict[str, tuple[float, ...]] = {
    "median": (1, 3),
    "non_local_means": (0.2,),
    "total_variation": (0.2,),
    "bilateral_guided": (128,),
    "regeneration": (30, 100),
    "rinsing": (4,),
    "super_resolution": (2,),
}
_ALL = {**_MORE, "diffpure": (75, 150), "gridpure": (15,)}

PRESETS = {
    "quick": Preset("quick", n=8, ends=0, few=4, fewest=2, slow=0, negatives=2, carriers=1),
    "standard": Preset("standard", n=100, ends=16, few=16, fewest=16, slow=16, negatives=4, carriers=2, more=_MORE),
    "full": Preset("full", n=100, ends=100, few=100, fewest=25, slow=100, negatives=100, carriers=2, more=_ALL),
}
"""Presets by name. On two cores, quick is meant to take 3 minutes and standard 60; full takes many hours."""

ALWAYS: dict[str, tuple[float, ...]] = {
    "jpeg": (50,),
    "crop": (0.5,),
    "rotation": (10,),
    "median": (2,),
    "non_local_means": (0.1,),
    "total_variation": (0.1,),
    "bilateral_guided": (64,),
    "vae": (1,),
    "diffpure": (100,),
    "regeneration": (60,),
    "rinsing": (2,),
    "super_resolution": (4,),
}
"""Strengths that every preset runs, beside the middle one of every distortion."""

_FEWEST = ("diffpure", "gridpure")

_FOR_PHOTOGRAPHS = (
    *("aspect_crop", "border", "caption", "collage", "flip", "grey", "instagram", "micro_warp", "pad", "scale"),
    *("screenshot", "telegram", "upload_chain", "wechat", "whatsapp"),
)
"""Distortions that these presets leave out, because they are for photographs, and most of them change the size."""


@dataclass(frozen=True)
class Planned:
    """An attack at a strength, and how many images it gets.

    Attributes:
        key: the name that results use for both, such as `jpeg_50` or `rinse_2x`.
        name: of the attack; the strengths of one name make a curve.
        strength: in the attack's own unit.
        unit: of the strength.
        n: images, at most.
        middle: whether it is a distortion at its middle strength; the headline is the mean over these.
        attack: ready to run; None if something is missing.
        reason: what is missing; empty if nothing is.
    """

    key: str
    name: str
    strength: float
    unit: str
    n: int
    middle: bool
    attack: BaseAttack | None = field(repr=False)
    reason: str = ""


@dataclass(frozen=True)
class RobustnessPlan:
    """What is measured, and on how much.

    Attributes:
        preset: a key of `PRESETS`.
        n: images, at least 2; None is the preset's number.
        negatives: images without a mark, each compared with all keys; None is the preset's number.
        seed: of prompts, noise, keys and attacks.
        attacks: names of attacks, or their keys such as `jpeg_50`, among those of the preset; empty is all.
        methods: carriers and baselines; empty is the model's carriers, as many as the preset takes, and all baselines
            that the preset has time for.
        baselines: whether the watermarks of other packages take part.
        search: whether our marks are also looked for in images that were cut out or turned; None is yes if the model
            has an aligner.
        perceptual: compare images by ST-LPIPS and FD-MNv2 too, where they are installed.
        prompts: taken in turn; empty is captions of held-out scenes.
    """

    preset: str = "quick"
    n: int | None = None
    negatives: int | None = None
    seed: int = 0
    attacks: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    baselines: bool = True
    search: bool | None = None
    perceptual: bool = True
    prompts: tuple[str, ...] = ()

    def sized_preset(self) -> Preset:
        """The preset, with the plan's own numbers of images.

        Raises:
            UsageError: there is no such preset, or there are fewer than two images, or no negative.
        """
        return get_preset(self.preset, self.n, self.negatives)


def get_preset(name: str, n: int | None = None, negatives: int | None = None) -> Preset:
    """A preset by its name, with your own numbers of images.

    Args:
        name: a key of `PRESETS`.
        n: images; None is the preset's number.
        negatives: images without a mark, at most n; None is the preset's number.

    Raises:
        UsageError: there is no such preset, or there are fewer than two images, or no negative.
    """
    if name not in PRESETS:
        raise UsageError(f"No preset is called {name!r}; choose from {', '.join(PRESETS)}.")
    if n is not None and n < 2:
        raise UsageError(f"--n must be at least 2, got {n}; intervals need more than one image.")
    if negatives is not None and negatives < 1:
        raise UsageError(f"--negatives must be at least 1, got {negatives}.")
    preset = PRESETS[name]
    return replace(preset, n=n or preset.n, negatives=negatives or preset.negatives)


def plan_attacks(preset: Preset, model: WatermarkModel, *, only: Sequence[str] = ()) -> list[Planned]:
    """The attacks of a preset, distortions first, ready to run.

    Args:
        preset: how much is run.
        model: its pipeline regenerates images, and its pixel denoiser purifies them.
        only: names of attacks, or keys such as `jpeg_50`; empty is all.

    Raises:
        UsageError: an entry of `only` that the preset does not run.
    """
    pipeline, device = model.pipeline, model.networks.placement.device
    makers: dict[str, Callable[..., Attack]] = {
        "vae": partial(VaeRoundTrip, model=pipeline, fit="whole"),
        "regeneration": partial(Regeneration, model=pipeline, fit="whole"),
        "rinsing": partial(Rinsing, model=pipeline, fit="whole"),
        "diffpure": partial(_purifier, DiffPure, model.name, device),
        "gridpure": partial(_purifier, GrIDPure, model.name, device),
        "super_resolution": partial(SuperResolution, device=device),
    }
    planned = []
    for kind in list_attacks():
        for strength in strengths(kind, preset):
            key = attack_key(kind.name, strength)
            if not only or kind.name in only or key in only:
                planned.append(_planned(kind, strength, preset, makers.get(kind.name, kind)))
    chosen = {name for entry in planned for name in (entry.name, entry.key)}
    if missing := [name for name in only if name not in chosen]:
        known = [kind.name for kind in list_attacks() if strengths(kind, preset)]
        raise UsageError(
            f"--attack {missing[0]} is not among those of the preset {preset.name}; choose from {', '.join(known)}, "
            f"or one with its strength, such as {attack_key('jpeg', 50)}."
        )
    return planned


def strengths(kind: type[Attack], preset: Preset) -> list[float]:
    """Strengths of an attack in a preset, from mild to hard; empty if the preset leaves the attack out."""
    chosen = {*ALWAYS.get(kind.name, ()), *preset.more.get(kind.name, ())}
    if kind.kind == "D" and kind.name not in _FOR_PHOTOGRAPHS:
        chosen |= {middle(kind), *((kind.sweep[0], kind.sweep[-1]) if preset.ends else ())}
    return sorted(chosen, key=lambda strength: abs(strength - kind.identity))


def middle(kind: type[Attack]) -> float:
    """The middle strength of an attack's sweep."""
    return kind.sweep[len(kind.sweep) // 2]


def attack_key(name: str, strength: float) -> str:
    """The name that results use for an attack at a strength."""
    return f"rinse_{strength:g}x" if name == "rinsing" else as_label(f"{name}_{strength:g}")


def _planned(kind: type[Attack], strength: float, preset: Preset, make: Callable[..., Attack]) -> Planned:
    at_middle = kind.kind == "D" and strength == middle(kind)
    at_most = _images(kind, strength, preset)
    entry = Planned(
        attack_key(kind.name, strength), kind.name, strength, kind.unit, min(preset.n, at_most), at_middle, None
    )
    try:
        attack = make(strength=strength)
        attack.prepare()
    except PrivgenError as error:
        return replace(entry, reason=" ".join(str(error).split()))
    return replace(entry, attack=attack)


def _images(kind: type[Attack], strength: float, preset: Preset) -> int:
    """How many images a preset gives to an attack at a strength."""
    if kind.kind == "D":
        return preset.n if strength in (middle(kind), *ALWAYS.get(kind.name, ())) else preset.ends
    return preset.fewest if kind.name in _FEWEST else preset.few


def _purifier(kind: type[DiffPure] | type[GrIDPure], model: str, device: str, strength: float) -> Attack:
    """Purification by the model's pixel denoiser, whose weights its repr tells apart.

    Raises:
        PrivgenError: the model has none.
    """
    try:
        denoiser = load_denoiser(model, space="pixel", device=device)
    except PrivgenError as error:
        reason = f"No pixel denoiser could be loaded from the model {model}; `privgen train denoiser` makes one."
        raise PrivgenError(reason) from error
    return kind(model=replace(denoiser, name=""), strength=strength, fit="whole")
