"""Whether p-values are what they say, on images without a mark."""

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from privgen import __version__
from privgen.environment import Environment, environment
from privgen.errors import UsageError
from privgen.evaluation.calibration.charts import ALL, bits_chart, rates_chart
from privgen.evaluation.calibration.images import CLEAN, DISTORTIONS, Unmarked, unmarked_images
from privgen.evaluation.calibration.rates import Rate, bit_figures, rate_over_images
from privgen.evaluation.calibration.readings import (
    LOG,
    NOMINAL,
    ImageReadings,
    ReadingKind,
    ReadingsLog,
    counted,
    is_search,
    read_for,
    readable_kinds,
)
from privgen.evaluation.record import Report
from privgen.evaluation.watermark.generation import draw_keys
from privgen.io.fingerprints import seed_from, settings_fingerprint, weights_fingerprint
from privgen.io.progress import Bar
from privgen.watermark.key import Key
from privgen.watermark.networks import Networks


RATES = {"1e-1": 4, "1e-2": 8, "1e-3": 12, "1e-4": 16}
"""Nominal rates that are reported, by name: their places in `NOMINAL`."""
PICTURES = ("rates.png", "bits.png")
"""Pictures that a report saves."""

_DOUBT = 0.05  # probability that some rate of a report is called exceeded though none is
_NETWORKS = ("unet", "transformer", "vae", "text_encoder")


@dataclass(frozen=True)
class CalibrationPlan:
    """What is read, and how often.

    Attributes:
        n: images of each source, at least 2. Each is read clean and after every distortion.
        keys: random keys that an image is read for; other ones for each image, and after each distortion.
        searches: how many of the images of each source are searched for objects, and for what an extractor reads,
            which is slow; for tiles all are. A search reads an image after one of the distortions, in turn.
        seed: of images and keys.
        folder: of images to read beside the packaged ones; none of them may carry a mark. None reads no others.
        kinds: of readings; None is all that the model can make.

    Raises:
        ValueError: a number that is too small.
    """

    n: int = 20
    keys: int = 20
    searches: int = 4
    seed: int = 0
    folder: Path | None = None
    kinds: tuple[ReadingKind, ...] | None = None

    def __post_init__(self) -> None:
        for name, least in {"n": 2, "keys": 1, "searches": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"expected {name} of at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True)
class CalibrationEvaluation(Report):
    """How often keys were found by chance.

    Attributes:
        settings: what was asked for.
        kinds: figures of each kind of reading.
        bits: of each kind that reads bits without having found a key, by source and distortion.
        curves: of each kind, the fraction of readings with a p-value of at most each rate of "nominal".
        exceeded: rates that are above the nominal ones, beyond chance.
        environment: versions and devices.
        pictures: the plots.
    """

    settings: dict[str, Any]
    kinds: dict[str, dict[str, Any]]
    bits: dict[str, Any]
    curves: dict[str, list[float]]
    exceeded: list[str]
    environment: Environment
    pictures: Mapping[str, Image.Image] = field(default_factory=dict)

    def figures(self) -> dict[str, Any]:
        """Everything that was measured, by name."""
        measured = {"kinds": self.kinds, "exceeded": self.exceeded, "bits": self.bits, "curves": self.curves}
        return {**self.settings, **measured}


def evaluate_calibration(
    networks: Networks, plan: CalibrationPlan | None = None, *, folder: str | os.PathLike[str] | None = None
) -> CalibrationEvaluation:
    """Read unmarked images for random keys, and compare how often p-values are small with how often they may be.

    For one image, a p-value speaks of keys drawn at random. So each image is read for many, and the readings of one
    image count together where rates differ from image to image.

    Args:
        networks: of the model whose images are read, and which reads.
        plan: what is read, and how often.
        folder: where readings are kept, so that an interrupted run goes on. None keeps none.

    Raises:
        UsageError: the plan's folder holds no images, or the model cannot make a kind of reading.
        PrivgenError: an image cannot be read, or the folder cannot be written to.
    """
    plan = plan or CalibrationPlan()
    able = readable_kinds(networks)
    kinds = tuple(able) if plan.kinds is None else plan.kinds
    if unable := set(kinds) - set(able):
        raise UsageError(f"The model has no networks for {', '.join(sorted(unable))}; leave the kind out.")
    images = unmarked_images(networks, plan.n, plan.seed, plan.folder)
    log = ReadingsLog(None if folder is None else Path(folder) / LOG, _work(networks, plan))
    work = list(work_of(images, plan, kinds))
    with Bar(total=sum(len(parts) for _, parts in work), unit="reading", desc="unmarked") as bar:
        read = []
        for image, parts in work:
            for readings in _read(networks, image, parts, plan, log):
                read.append(readings)
                bar.update()
    return calibration(networks.model, plan, read)


Part = tuple[ReadingKind, str]
"""A kind of reading, and a distortion."""


def work_of(
    images: Sequence[Unmarked], plan: CalibrationPlan, kinds: Sequence[ReadingKind]
) -> Iterator[tuple[Unmarked, list[Part]]]:
    """Say what each image is read for: whole after every distortion, and searched after one of them, in turn.

    Args:
        images: of all sources.
        plan: says how many of each source are searched.
        kinds: of readings.
    """
    places: dict[str, int] = defaultdict(int)
    names = list(DISTORTIONS)
    for image in images:
        place = places[image.source]
        places[image.source] += 1
        whole = [(kind, name) for kind in kinds if not is_search(kind) for name in names]
        searched = [kind for kind in kinds if is_search(kind) and (place < plan.searches or kind == "tile_search")]
        yield image, whole + [(kind, names[place % len(names)]) for kind in searched]


def _read(
    networks: Networks, image: Unmarked, parts: Sequence[Part], plan: CalibrationPlan, log: ReadingsLog
) -> Iterator[ImageReadings]:
    """Read one image; what the log holds is not read again."""
    pixels: Tensor | None = None
    for kind, name in parts:
        found = log.get(kind, image.source, image.name, name)
        if found is None:
            pixels = image.load() if pixels is None else pixels
            p, bits = read_for(_keys(image, plan, kind, name), kind, image.distorted(pixels, name), networks)
            found = ImageReadings(kind, image.source, image.name, name, len(p), counted(p), min(p), bits)
            log.add(found)
        yield found


def _keys(image: Unmarked, plan: CalibrationPlan, kind: ReadingKind, distortion: str) -> tuple[Key, ...]:
    """Random keys for one image: after each distortion other ones, so that the readings are independent."""
    seed = seed_from("calibration", plan.seed, image.source, image.name, *([] if is_search(kind) else [distortion]))
    return draw_keys(plan.keys, torch.Generator().manual_seed(seed), "random")


def calibration(model: str | None, plan: CalibrationPlan, readings: Sequence[ImageReadings]) -> CalibrationEvaluation:
    """The report of readings.

    Args:
        model: name of the model that read.
        plan: what was asked for.
        readings: at least one.
    """
    by_kind: dict[str, list[ImageReadings]] = defaultdict(list)
    for item in readings:
        by_kind[item.kind].append(item)
    kinds = {kind: _figures(rows) for kind, rows in by_kind.items()}
    curves = {"nominal": list(NOMINAL), **{kind: _curve(rows) for kind, rows in by_kind.items()}}
    bits = {kind: _bits(rows) for kind, rows in by_kind.items() if rows[0].bits}
    settings = {
        "model": model,
        "n": plan.n,
        "keys": plan.keys,
        "searches": plan.searches,
        "seed": plan.seed,
        "folder": None if plan.folder is None else plan.folder.name,
    }
    sources = {
        kind: {name: _curve(group) for name, group in {**_by_source(rows), ALL: rows}.items()}
        for kind, rows in by_kind.items()
    }
    pictures = {"rates": rates_chart(sources, {kind: row["readings"] for kind, row in kinds.items()})}
    if bits:
        pictures["bits"] = bits_chart(
            {kind: {name: _rows(group) for name, group in _by_source(by_kind[kind]).items()} for kind in bits}
        )
    return CalibrationEvaluation(settings, kinds, bits, curves, exceeded(kinds), environment(), pictures)


def exceeded(kinds: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Name the rates that are above the nominal ones, beyond chance; the number of rates is accounted for.

    Args:
        kinds: figures of each kind of reading, with `Rate` values under "rates", by group of images and name.
    """
    rates: dict[str, Rate] = {
        f"{kind}, {group}, {name}": rate
        for kind, figures in kinds.items()
        for group, row in figures["rates"].items()
        for name, rate in row.items()
    }
    return [name for name, rate in rates.items() if rate.excess_p * len(rates) <= _DOUBT]


def _figures(rows: Sequence[ImageReadings]) -> dict[str, Any]:
    """Counts of one kind of reading, and its rates for all images, for each source and after each distortion."""
    groups = {ALL: rows, **_by_source(rows)}
    groups |= {name: [row for row in rows if row.distortion == name] for name in DISTORTIONS}
    return {
        "images": len({(row.source, row.name) for row in rows}),
        "readings": sum(row.readings for row in rows),
        "smallest": min(row.smallest for row in rows),
        "rates": {name: _rates(group) for name, group in groups.items() if group},
    }


def _rates(rows: Sequence[ImageReadings]) -> dict[str, Rate]:
    images: dict[tuple[str, str], list[ImageReadings]] = defaultdict(list)
    for row in rows:
        images[row.source, row.name].append(row)
    readings = [sum(row.readings for row in group) for group in images.values()]
    return {
        name: rate_over_images(
            [sum(row.counts[place] for row in group) for group in images.values()], readings, NOMINAL[place]
        )
        for name, place in RATES.items()
    }


def _curve(rows: Sequence[ImageReadings]) -> list[float]:
    return [float(x) for x in np.sum([row.counts for row in rows], 0) / sum(row.readings for row in rows)]


def _by_source(rows: Sequence[ImageReadings]) -> dict[str, list[ImageReadings]]:
    groups: dict[str, list[ImageReadings]] = defaultdict(list)
    for row in rows:
        groups[row.source].append(row)
    return groups


def _rows(rows: Sequence[ImageReadings], distortion: str = CLEAN) -> list[list[int]]:
    return [[int(bit) for bit in text] for row in rows if row.distortion == distortion for text in row.bits]


def _bits(rows: Sequence[ImageReadings]) -> dict[str, dict[str, dict[str, float]]]:
    return {
        source: {name: bit_figures(_rows(group, name)) for name in DISTORTIONS}
        for source, group in _by_source(rows).items()
    }


def _work(networks: Networks, plan: CalibrationPlan) -> str:
    """Sixteen hexadecimal digits for all that readings depend on, besides image and distortion."""
    parts = [getattr(networks.pipeline, name, None) for name in _NETWORKS]
    parts += [networks.extractor] if networks.can_read else []
    parts += [networks.aligner] if networks.can_search else []
    weights = [weights_fingerprint(part) for part in parts if isinstance(part, nn.Module)]
    attacks = {name: repr(attack) for name, attack in DISTORTIONS.items()}
    return settings_fingerprint(weights, attacks, plan.seed, plan.keys, __version__)[:16]
