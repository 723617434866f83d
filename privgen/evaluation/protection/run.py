"""Protects, purifies, trains, draws and judges: one cell after the other."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from privgen import __version__
from privgen.attacks.adversaries import Adversary, adversary_class, mixed
from privgen.data.scenes import HELDOUT_NOUNS
from privgen.data.sheets import picture
from privgen.diffusion.sampling import generate
from privgen.evaluation.intervals import mean
from privgen.evaluation.protection.judge import Features, Judge, train_judge
from privgen.evaluation.protection.log import Log, Row
from privgen.evaluation.protection.plan import CLEAN, PRESETS, UNTRAINED, Cell, StudyPlan
from privgen.evaluation.protection.purifications import purify
from privgen.evaluation.protection.subjects import Subject
from privgen.evaluation.workers import Processes
from privgen.io.fingerprints import seed_from, settings_fingerprint, tensor_fingerprint, weights_fingerprint
from privgen.io.plots import data_uri
from privgen.io.progress import Bar
from privgen.protection.method import Method
from privgen.protection.protection import Protection
from privgen.protection.surrogate import Surrogate, at_most


SHOWN = 3
"""Images of a cell that the page shows."""

UNSEEN = 8
"""Images of the unpersonalised model that the judge is trained with."""


@dataclass(frozen=True)
class Study:
    """What is measured.

    Attributes:
        plan: how much.
        models: by name, the main one first. A protection is computed against the adversary's own model.
        subjects: by name.
        methods: by name, those that can be run.
        features: what the judge looks at.
    """

    plan: StudyPlan
    models: Mapping[str, Surrogate]
    subjects: Mapping[str, Subject] = field(repr=False)
    methods: Mapping[str, Method]
    features: Features

    def cells(self) -> list[Cell]:
        """All cells, grouped so that images need to be protected once."""
        return self.plan.cells(list(self.models), list(self.subjects), self.methods)

    def adversary(self, cell: Cell) -> Adversary:
        """The adversary of a cell, who calls the subject by a word of the model's that means nothing yet."""
        return self.named_adversary(cell.adversary, cell.model, cell.subject)

    def named_adversary(self, name: str, model: str, subject: str) -> Adversary:
        """The adversary of a name."""
        noun = self.subjects[subject].noun
        # Models of photographs know the nouns of scenes; those of scenes have words that they were not trained on.
        rare = len(self.models[model].pipeline.tokenizer.tokenize("sks")) == 1
        word = "sks" if rare else noun or HELDOUT_NOUNS[0]
        return adversary_class(name)("<subject>" if name == "textual-inversion" else word)

    def works(self) -> dict[Cell, str]:
        """For each cell, a digest of all that its rows depend on."""
        plan = self.plan
        weights = {
            name: [weights_fingerprint(part) for part in model.pipeline.components.values() if _is_network(part)]
            for name, model in self.models.items()
        }
        images = {name: tensor_fingerprint(*subject.images) for name, subject in self.subjects.items()}
        methods = {name: method.made_by() for name, method in self.methods.items()}
        shared = [
            __version__,
            plan.psnr,
            plan.longest,
            list(plan.guidance_scales),
            repr(plan.sampling),
            self.features.name,
        ]
        found = {}
        for cell in self.cells():
            method = methods.get(cell.method, "")
            model = [weights[cell.model], [str(name) for name in self.models[cell.model].autoencoders]]
            adversary = [repr(self.adversary(cell)), *self.efforts(cell)]
            parts = [__version__, shared, self.samples, model, adversary, images[cell.subject], method]
            found[cell] = settings_fingerprint(*parts)[:16]
        return found

    def efforts(self, cell: Cell) -> tuple[int, ...]:
        """The training lengths of a cell, in steps."""
        pace = self.adversary(cell).pace_for(self.models[cell.model].pipeline)
        return self.plan.efforts(pace.effort)

    @property
    def samples(self) -> int:
        """Images at each effort and guidance scale."""
        return PRESETS[self.plan.preset].samples


def measure(study: Study, log: Log, shared: Processes) -> list[Row]:
    """Measure what is missing in the log, together with other processes.

    Args:
        study: what is measured.
        log: of this process.
        shared: the processes that share the work.

    Returns:
        All rows, the same in every process, in the order of the cells.
    """
    cells = study.cells()
    groups = [list(group) for _, group in groupby(_by_images(cells), _images_of)]
    mine = shared.share(groups, [float(sum(cell.method != UNTRAINED for cell in group)) + 0.1 for group in groups])
    bench, rows = Bench(study), []
    with Bar(total=sum(map(len, mine)), desc="protection", unit="cell", disable=not shared.is_main) as bar:
        for group in mine:
            for cell in group:
                found = log.get(cell)
                if found is None:
                    found = bench.measure(cell)
                    log.add(cell, found)
                rows += found
                bar.update()
    place = {cell: i for i, cell in enumerate(cells)}
    return sorted(shared.gather(rows), key=lambda row: (place[row.cell], row.effort, row.guidance_scale))


def _images_of(cell: Cell) -> tuple[str, str, int, str]:
    return cell.model, cell.subject, cell.seed, cell.method


def _by_images(cells: Sequence[Cell]) -> list[Cell]:
    """Cells that share protected images one after the other, and else in their order."""
    groups: dict[tuple[str, str, int, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault(_images_of(cell), []).append(cell)
    return [cell for group in groups.values() for cell in group]


@dataclass(frozen=True)
class _Cost:
    """What a protection cost: means over the images."""

    psnr_db: float
    visible_de_p99: float
    seconds_per_image: float


class Bench:
    """Measures cells, and keeps what the next one may need again.

    Args:
        study: what is measured.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self._judges: dict[tuple[str, str], Judge] = {}
        self._protected: tuple[object, list[Tensor], _Cost | None] = (None, [], None)

    def measure(self, cell: Cell) -> list[Row]:
        """The rows of a cell, one for each effort and guidance scale."""
        plan, judge = self.study.plan, self.judge(cell.model, cell.subject)
        images, cost = self.images(cell)
        figures = {} if cost is None else vars(cost)
        started = time.perf_counter()
        rows = []
        for effort, pipeline in self._trained(cell, images):
            for scale in plan.guidance_scales:
                drawn = self._draw(cell, pipeline, scale)
                verdict = judge.judge(drawn)
                sheet = _sheet(drawn[:SHOWN]) if self._is_shown(cell) else ""
                rows.append(Row(cell, effort, scale, verdict.score, verdict.similarity, sheet=sheet, **figures))
        seconds = time.perf_counter() - started
        return [replace(row, seconds=seconds) for row in rows]

    def judge(self, model: str, subject: str) -> Judge:
        """The judge of a subject, which knows how the model draws before it is personalised."""
        if (model, subject) not in self._judges:
            pipeline = self.study.models[model].pipeline
            prompts = self.study.named_adversary("lora", model, subject).prompts_for(pipeline)
            seeds = [seed_from("judge", i) for i in range(UNSEEN)]
            drawn = generate(pipeline, _cycle(prompts, UNSEEN), seeds, self.study.plan.sampling)
            self._judges[model, subject] = train_judge(self.study.subjects[subject], drawn, self.study.features)
        return self._judges[model, subject]

    def images(self, cell: Cell) -> tuple[list[Tensor], _Cost | None]:
        """What the adversary trains on, and what the protection cost."""
        side = self.study.models[cell.model].canvas.size
        originals = self.study.subjects[cell.subject].images
        clean = [_as_saved(at_most(image, side)) for image in originals]
        if cell.method in (CLEAN, UNTRAINED):
            return clean, None
        if self._protected[0] != _images_of(cell):
            self._protected = (_images_of(cell), *self._protect(cell, [_as_saved(image) for image in originals]))
        _, protected, cost = self._protected
        pipeline = self.study.models[cell.model].pipeline
        purified = purify(cell.purification, protected, cell.model, pipeline, _generator("purify", cell))
        return mixed(purified, clean, 1 - cell.fraction), cost

    def _protect(self, cell: Cell, clean: list[Tensor]) -> tuple[list[Tensor], _Cost]:
        protection = Protection(self.study.methods[cell.method], self.study.models[cell.model])
        seed = seed_from("protect", cell.subject, cell.seed)
        results = protection.protect(clean, psnr=self.study.plan.psnr, seed=seed)
        cost = (mean([getattr(r, name) for r in results]).value for name in ("psnr", "visible_de_p99", "seconds"))
        # Adversaries scale photographs down to the size at which the model learns; what is larger need not be kept.
        side = self.study.models[cell.model].canvas.size
        return [_as_saved(at_most(result.image, side)) for result in results], _Cost(*cost)

    def _trained(self, cell: Cell, images: list[Tensor]) -> Iterator[tuple[int, Any]]:
        pipeline = self.study.models[cell.model].pipeline
        if cell.method == UNTRAINED:
            return iter([(0, pipeline)])
        generator = _generator("train", cell)
        return self.study.adversary(cell).fit_at(pipeline, images, self.study.efforts(cell), generator=generator)

    def _draw(self, cell: Cell, pipeline: Any, scale: float) -> Tensor:
        prompts = _cycle(
            self.study.adversary(cell).prompts_for(self.study.models[cell.model].pipeline), self.study.samples
        )
        # The same noise for all methods, efforts and scales, so that differences between them are not of the noise.
        seeds = [seed_from("draw", cell.subject, cell.seed, i) for i in range(len(prompts))]
        return generate(pipeline, prompts, seeds, replace(self.study.plan.sampling, guidance_scale=scale))

    def _is_shown(self, cell: Cell) -> bool:
        first = next(iter(self.study.subjects))
        return (cell.subject, cell.seed, cell.fraction) == (first, self.study.plan.seed, 1)


def _generator(purpose: str, cell: Cell) -> torch.Generator:
    """Randomness that is the same for all methods."""
    return torch.Generator().manual_seed(seed_from(purpose, cell.adversary, cell.subject, cell.seed))


def _as_saved(image: Tensor) -> Tensor:
    """An image with the 8 bits that a file has."""
    return (image.float() * 255).round() / 255


def _cycle(prompts: Sequence[str], count: int) -> list[str]:
    return [prompts[i % len(prompts)] for i in range(count)]


def _is_network(part: object) -> bool:
    return isinstance(part, torch.nn.Module)


def _sheet(images: Tensor) -> str:
    """Images side by side, as a data URI."""
    file = io.BytesIO()
    picture(torch.cat(list(images), -1).numpy()).save(file, format="JPEG", quality=88)
    return data_uri(file.getvalue(), "image/jpeg")
