"""Scores of settings, from what was measured of their cases."""

from collections.abc import Sequence

import numpy as np

from privgen.evaluation.intervals import Measured, fraction, mean
from privgen.evaluation.objects.cases import AREAS, PHOTOGRAPHS
from privgen.evaluation.objects.log import Row
from privgen.evaluation.objects.readings import Reading, Written
from privgen.evaluation.objects.run import AS_IS


Scores = dict[str, Measured | None]


def scores(readings: Sequence[Reading], n_bits: int = 48) -> Scores:
    """Sum up what was read of the images of one setting."""
    p_values = [p for reading in readings for p in reading.p_values]
    overlaps = [overlap for reading in readings for overlap in reading.overlaps]
    areas = [area for reading in readings for area in reading.areas]
    strangers = [any(reading.strangers) for reading in readings if reading.strangers]
    return {
        "bit_accuracy": mean([matches / n_bits for reading in readings for matches in reading.matches]),
        "tpr_1e-3": fraction(p <= 1e-3 for p in p_values),
        "tpr_1e-6": fraction(p <= 1e-6 for p in p_values),
        "false_owner_rate": fraction(strangers) if strangers else None,
        "localisation_iou": mean(overlaps) if overlaps else None,
        "area": mean(areas) if areas else None,
    }


def write_scores(cases: Sequence[Written]) -> Scores:
    """Sum up how the marks of one setting were written."""
    qualities = [quality for case in cases for quality in case.qualities if np.isfinite(quality)]
    return {
        "object_psnr": mean(qualities) if qualities else None,
        "psnr_outside_db": mean([case.psnr_outside for case in cases]),
        "background_bit_accuracy": mean([value for case in cases for value in case.background]),
        "mask_iou": mean([overlap for case in cases for overlap in case.mask_overlaps]),
    }


def of_scenes(rows: Sequence[Row]) -> dict[str, Scores]:
    """Scores of each setting of generated scenes, also of what happened to their images."""
    found: dict[str, Scores] = {}
    for setting in dict.fromkeys(row.setting for row in rows if row.setting != PHOTOGRAPHS):
        some = [row for row in rows if row.setting == setting]
        for name in some[0].readings:
            summed = scores([row.readings[name] for row in some])
            found[name.replace(AS_IS, setting)] = {**summed, **(_written(some) if name == AS_IS else {})}
    return found


def of_photographs(rows: Sequence[Row]) -> dict[str, Scores]:
    """Scores of photographs by the number of their objects and by the objects' areas."""
    found: dict[str, Scores] = {}
    some = [row for row in rows if row.setting == PHOTOGRAPHS]
    for name in some[0].readings if some else ():
        readings = [row.readings[name] for row in some]
        if not name.startswith(AS_IS):
            found[name] = scores(readings)
            continue
        suffix = name.removeprefix(AS_IS)
        for count, setting in ((2, "two_objects"), (3, "three_objects")):
            if those := [row for row in some if len(row.written.qualities) == count]:
                summed = scores([row.readings[name] for row in those])
                found[f"{setting}{suffix}"] = {**summed, **(_written(those) if name == AS_IS else {})}
        for area in sorted({area for areas in AREAS for area in areas}):
            if parts := [part for reading in readings if (part := reading.of_area(area)).matches]:
                found[f"area_{100 * area:.0f}{suffix}"] = scores(parts)
    return found


def _written(rows: Sequence[Row]) -> Scores:
    return write_scores([row.written for row in rows])
