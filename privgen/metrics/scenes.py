"""Judge whether images show the scene that they should, with a classifier of scenes."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from privgen.data.scenes import SceneSpec, draw_scene
from privgen.errors import PrivgenError
from privgen.io.pixels import resize
from privgen.models.classifier import SceneClassifier


THRESHOLD = 0.5
"""An object counts as found if its probability is at least this."""


@dataclass(frozen=True)
class SceneJudgement:
    """What a classifier sees in an image, and whether that is the scene that it should show.

    Attributes:
        found: all objects with a probability of at least `THRESHOLD`, the most probable first.
        probabilities: of these objects.
        colour: of the background.
        pattern: of the background; None if it is plain.
        objects_right: whether the k objects of the scene are found and are the k most probable; others may be found
            too.
        exact: whether the objects of the scene are found, and no others.
        colour_right: whether the background has the right colour.
        pattern_right: whether the background has the right pattern, or none if the scene has none.
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
        folder: where it was saved; by default the classifier that ships with mini.

    Raises:
        PrivgenError: the folder holds no classifier.
    """
    path = folder or Path(str(files("privgen"))) / "models" / "mini" / "privgen" / "classifier"
    if not (path / "config.json").is_file():
        raise PrivgenError(f"{path} holds no classifier of scenes; train one with `privgen train classifier -o DIR`.")
    return SceneClassifier.from_pretrained(path, use_safetensors=True).eval()


@torch.no_grad()
def judge(
    images: Tensor, specs: Sequence[SceneSpec], classifier: SceneClassifier, *, batch_size: int = 64
) -> list[SceneJudgement]:
    """Judge whether images show the scenes that they should.

    Args:
        images: (batch, 3, height, width) in [0, 1]; they are resized to the classifier's size.
        specs: the scene that each image should show.
        classifier: from `load_classifier`.
        batch_size: images at a time.

    Raises:
        ValueError: there are not as many specs as images, or the classifier does not know an object.
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
        x = resize(images[first : first + batch_size].float(), (config.sample_size, config.sample_size)).clamp(0, 1)
        output = classifier(x.to(classifier.device))
        rows = zip(
            output.nouns.sigmoid().cpu(),
            output.colour.argmax(1).tolist(),
            output.pattern.argmax(1).tolist(),
            strict=True,
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
        classifier: the classifier that is measured.
        n: how many scenes.
        seed: of the first scene; choose one that training never draws.
    """
    right: list[bool] = []
    for first in range(0, n, 64):
        scenes = [draw_scene(seed + i) for i in range(first, min(first + 64, n))]
        pixels = torch.stack([torch.from_numpy(scene.pixels) for scene in scenes])
        right += [judgement.exact for judgement in judge(pixels, [scene.spec for scene in scenes], classifier)]
    return right
