"""Whether a picture shows the scene that was asked for, as a classifier of scenes sees it."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from privgen.data.scenes import SceneSpec, draw_scene
from privgen.errors import PrivgenError
from privgen.io.images import resize
from privgen.models.classifier import SceneClassifier


THRESHOLD = 0.5
"""Probability from which an object counts as being there."""


@dataclass(frozen=True)
class SceneJudgement:
    """What a classifier sees in a picture, and whether it is what was asked for.

    Attributes:
        found: every object of a probability of at least one half, the surest first.
        probabilities: theirs.
        colour: of the background.
        pattern: of the background, None for a plain one.
        objects_right: with k objects asked for, these are the k surest, and each of them is found; others may be
            found beside them, so it is `exact` that says whether nothing else is there.
        exact: the objects found are those asked for and no others.
        colour_right: the background has the colour asked for.
        pattern_right: the background has the pattern asked for, or none where none was.
    """

    found: tuple[str, ...]
    probabilities: tuple[float, ...]
    colour: str
    pattern: str | None
    objects_right: bool
    exact: bool
    colour_right: bool
    pattern_right: bool

    def __str__(self) -> str:
        things = ", ".join(f"{n} {p:.2f}" for n, p in zip(self.found, self.probabilities, strict=True)) or "nothing"
        return f"{things} on {self.colour}, {self.pattern or 'plain'}"


def load_classifier(folder: Path | None = None) -> SceneClassifier:
    """Load a classifier of scenes.

    Args:
        folder: where it was saved; by default the one that ships beside mini.

    Raises:
        PrivgenError: there is none.
    """
    path = folder or Path(str(files("privgen"))) / "models" / "mini" / "privgen" / "classifier"
    if not (path / "config.json").is_file():
        raise PrivgenError(f"{path} holds no classifier of scenes; `privgen train classifier -o DIR` makes one.")
    return SceneClassifier.from_pretrained(path).eval()


@torch.no_grad()
def judge(
    images: Tensor, specs: Sequence[SceneSpec], classifier: SceneClassifier, *, batch_size: int = 64
) -> list[SceneJudgement]:
    """Judge pictures by what was asked for.

    Args:
        images: (batch, 3, height, width) in [0, 1]; resized to the classifier's size.
        specs: what each was meant to show.
        classifier: as `load_classifier` gives it.
        batch_size: pictures at a time.

    Raises:
        ValueError: not as many specs as images, or an object, colour or pattern that the classifier does not know.
    """
    config = classifier.config
    if images.ndim != 4 or len(images) != len(specs):
        raise ValueError(
            f"expected one spec for each of a batch of images, got {len(specs)} and {tuple(images.shape)}"
        )
    unknown = {placed.noun for spec in specs for placed in spec.objects} - set(config.nouns)
    if unknown:
        raise ValueError(f"expected objects that the classifier knows, got {', '.join(sorted(unknown))}")
    judgements = []
    for first in range(0, len(specs), batch_size):
        x = resize(images[first : first + batch_size].float(), (config.sample_size, config.sample_size))
        said = classifier(x.to(classifier.device))
        rows = zip(
            said.nouns.sigmoid().cpu(), said.colour.argmax(1).tolist(), said.pattern.argmax(1).tolist(), strict=True
        )
        for spec, (scores, colour, pattern) in zip(specs[first : first + batch_size], rows, strict=True):
            seen = config.patterns[pattern] if pattern < len(config.patterns) else None
            judgements.append(_judge(spec, scores, tuple(config.nouns), config.colours[colour], seen))
    return judgements


def _judge(
    spec: SceneSpec, scores: Tensor, nouns: tuple[str, ...], colour: str, pattern: str | None
) -> SceneJudgement:
    order = scores.argsort(descending=True).tolist()
    found = tuple(nouns[i] for i in order if scores[i] >= THRESHOLD)
    asked = {placed.noun for placed in spec.objects}
    return SceneJudgement(
        found=found,
        probabilities=tuple(float(scores[i]) for i in order[: len(found)]),
        colour=colour,
        pattern=pattern,
        objects_right=set(found[: len(asked)]) == asked,
        exact=set(found) == asked,
        colour_right=colour == spec.colour,
        pattern_right=pattern == spec.pattern,
    )


def classified_right(classifier: SceneClassifier, n: int, seed: int) -> list[bool]:
    """Whether a classifier finds exactly the objects that are there, for each of n drawn scenes.

    Args:
        classifier: to be examined.
        n: number of scenes.
        seed: of the first scene; take one that training never draws.
    """
    right: list[bool] = []
    for first in range(0, n, 64):
        scenes = [draw_scene(seed + i) for i in range(first, min(first + 64, n))]
        pixels = torch.stack([torch.from_numpy(scene.pixels) for scene in scenes])
        right += [said.exact for said in judge(pixels, [scene.spec for scene in scenes], classifier)]
    return right
