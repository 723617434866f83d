"""What a study of protection measures: cells, blocks of them, and presets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from privgen.diffusion.sampling import Sampling
from privgen.errors import UsageError
from privgen.protection.method import Method
from privgen.protection.registry import METHODS, method_class


CLEAN = "clean"
"""The images without a protection."""
UNTRAINED = "untrained"
"""The model before it is personalised."""
CONTROL = "noise"
"""The control: white noise of the same PSNR."""

NONE = "none"
PURIFICATIONS = (NONE, "jpeg", "resize", "diffpure", "gridpure", "impress", "regeneration")
"""What the adversary does to the images before it trains on them."""

ADVERSARIES = ("lora", "prompt-embeds", "textual-inversion", "dreambooth")
"""Names of the adversaries, see `privgen.attacks.adversaries`."""

DEVELOPMENT = ("fox", "camera", "owl")
"""Subjects that methods were developed on. Presets measure others."""

SUBJECTS = ("panda", "snail", "gift", "trumpet", "whale", "cupcake", "frog", "bus")
"""Subjects of the presets, in the order in which they are taken."""

SLOW = ("shift", "aspl")
"""Methods that take a minute an image or so: where you do not ask for them, presets measure them on `SLOW_PAIRS`
pairs of subject and seed only."""
SLOW_PAIRS = 2

EFFORTS = (0.25, 0.5, 1.0)
"""Training lengths, as fractions of the longest."""


@dataclass(frozen=True)
class Cell:
    """One training run of an adversary, or one model that was not trained.

    Attributes:
        model: name of the model.
        adversary: name of the adversary.
        subject: what it learns.
        seed: of the protection, the training and the images.
        method: of protection; `CLEAN`, or `UNTRAINED`.
        purification: of `PURIFICATIONS`.
        fraction: of the images that are protected, rounded to whole images; the others are clean.
    """

    model: str
    adversary: str
    subject: str
    seed: int
    method: str
    purification: str = NONE
    fraction: float = 1.0


@dataclass(frozen=True)
class Block:
    """Cells that a preset measures: all combinations.

    Attributes:
        adversaries: names.
        methods: names of methods of protection; empty is all of the plan.
        purifications: of `PURIFICATIONS`.
        fractions: of the images that are protected.
        pairs: how many pairs of subject and seed; the first seed of every subject comes first. 0 is all.
        second: whether the cells are those of the second model, mini, beside the main one.
    """

    adversaries: tuple[str, ...]
    methods: tuple[str, ...] = ()
    purifications: tuple[str, ...] = (NONE,)
    fractions: tuple[float, ...] = (1.0,)
    pairs: int = 0
    second: bool = False


@dataclass(frozen=True)
class Preset:
    """How much is measured.

    Attributes:
        name: on the command line.
        subjects: how many scenes' subjects.
        seeds: for each subject.
        methods: of protection.
        blocks: which combinations.
        samples: images that are drawn at each effort and guidance scale.
    """

    name: str
    subjects: int
    seeds: int
    methods: tuple[str, ...]
    blocks: tuple[Block, ...]
    samples: int = 6


_BEST = ("shield", "encoder")
_MAIN = ("noise", "shield", "shift", "encoder")
_BOTH = ("lora", "prompt-embeds")

PRESETS = {
    "quick": Preset("quick", 1, 1, ("noise", "shield"), (Block(("lora",)),), samples=4),
    "standard": Preset(
        "standard",
        4,
        2,
        (*_MAIN, "advdm", "universal"),
        (
            Block(_BOTH, _MAIN),
            Block(_BOTH, ("advdm",), pairs=4),
            Block(_BOTH, ("universal",), pairs=2),
            Block(_BOTH, ("noise", *_BEST), ("jpeg",), pairs=4),
            Block(("lora",), ("noise", "shield"), PURIFICATIONS[2:], pairs=2),
            Block(("lora",), ("shield",), fractions=(0.67, 0.5), pairs=4),
            Block(("lora",), ("noise", "shield"), pairs=4, second=True),
        ),
    ),
    "full": Preset(
        "full",
        8,
        3,
        METHODS,
        (
            Block(ADVERSARIES),
            Block(_BOTH, ("noise", *_BEST, "aspl"), PURIFICATIONS[1:]),
            Block(_BOTH, ("noise", *_BEST), fractions=(0.67, 0.5)),
            Block(ADVERSARIES, second=True),
        ),
        samples=8,
    ),
}
"""Presets by name. On two cores, quick is meant to take a few minutes and standard two hours; full takes days."""


@dataclass(frozen=True)
class StudyPlan:
    """What is measured, and on how much.

    Attributes:
        preset: a key of `PRESETS`.
        seed: of all randomness.
        methods: names of methods, or methods with settings of your own; empty is those of the preset. `CONTROL` is
            always added.
        adversaries: names; empty is those of the preset.
        psnr: of protected images, in dB.
        longest: training steps of the longest training; None is what the adversary takes for the model. The two other
            trainings are a quarter and a half of it.
        guidance_scales: that images are drawn with; empty is what suits the model.
        sampling: how images are drawn; the guidance scale there does not count.
    """

    preset: str = "quick"
    seed: int = 0
    methods: tuple[str | Method, ...] = ()
    adversaries: tuple[str, ...] = ()
    psnr: float = 34.0
    longest: int | None = None
    guidance_scales: tuple[float, ...] = ()
    sampling: Sampling = field(default_factory=lambda: Sampling(steps=20))

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UsageError: one is unknown or out of range.
        """
        if self.preset not in PRESETS:
            raise UsageError(f"No preset is called {self.preset!r}; choose from {', '.join(PRESETS)}.")
        if unknown := [name for name in self.adversaries if name not in ADVERSARIES]:
            raise UsageError(f"No adversary is called {unknown[0]!r}; choose from {', '.join(ADVERSARIES)}.")
        if self.longest is not None and self.longest < 4:
            raise UsageError(f"The longest training is {self.longest} steps; give at least 4.")
        if not 0 < self.psnr < float("inf"):
            raise UsageError(f"The PSNR is {self.psnr} dB; give a number above 0.")
        self.resolved_methods()

    def resolved_methods(self) -> dict[str, Method]:
        """The methods by name, the control first.

        Raises:
            UsageError: a name is unknown.
        """
        chosen = self.methods or PRESETS[self.preset].methods
        methods = [method_class(method)() if isinstance(method, str) else method for method in (CONTROL, *chosen)]
        return {method.name: method for method in methods}

    def blocks(self) -> tuple[Block, ...]:
        """The blocks of the preset."""
        return PRESETS[self.preset].blocks

    def efforts(self, longest: int) -> tuple[int, ...]:
        """The training lengths in steps, in rising order.

        Args:
            longest: of them, where the plan names none.
        """
        return tuple(sorted({max(round(part * (self.longest or longest)), 1) for part in EFFORTS}))

    def cells(self, models: Sequence[str], subjects: Sequence[str], methods: Iterable[str]) -> list[Cell]:
        """All cells, grouped so that images need to be protected once.

        Args:
            models: the main model, and after it the second if there is one.
            subjects: names.
            methods: that can be run, without `CLEAN`.
        """
        preset, names = PRESETS[self.preset], list(methods)
        pairs = [(subject, seed) for seed in range(preset.seeds) for subject in subjects]
        found: dict[Cell, None] = {}
        for block in self.blocks():
            if block.second and len(models) < 2:
                continue
            for number, (subject, seed) in enumerate(pairs[: block.pairs or None]):
                fast = [name for name in names if self.methods or number < SLOW_PAIRS or name not in SLOW]
                for adversary in self._adversaries(block):
                    first = Cell(models[int(block.second)], adversary, subject, self.seed + seed, UNTRAINED)
                    found |= dict.fromkeys((first, replace(first, method=CLEAN)))
                    found |= dict.fromkeys(
                        replace(first, method=method, purification=purification, fraction=fraction)
                        for method in self._methods(block, fast)
                        for purification in block.purifications
                        for fraction in block.fractions
                    )
        return sorted(found, key=lambda cell: (cell.seed, subjects.index(cell.subject), models.index(cell.model)))

    def _adversaries(self, block: Block) -> tuple[str, ...]:
        if not self.adversaries:
            return block.adversaries
        return (
            self.adversaries
            if block.adversaries == self.blocks()[0].adversaries
            else tuple(name for name in block.adversaries if name in self.adversaries)
        )

    def _methods(self, block: Block, names: list[str]) -> list[str]:
        # Methods that you ask for go through everything that a preset measures.
        return [name for name in names if self.methods or not block.methods or name in block.methods]


def scene_subjects(preset: str) -> tuple[str, ...]:
    """The subjects of a preset: nouns of scenes that no shipped model was trained on."""
    return SUBJECTS[: PRESETS[preset].subjects]
