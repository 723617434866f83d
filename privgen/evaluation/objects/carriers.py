"""How well each carrier marks the objects of generated scenes, and what regeneration leaves of the marks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import StableDiffusionImg2ImgPipeline
from torch import Tensor

from privgen.attacks import JPEG, Regeneration
from privgen.data.scenes import SceneSpec, draw
from privgen.diffusion.sampling import silent
from privgen.errors import UsageError
from privgen.evaluation.intervals import Measured, fraction, mean
from privgen.evaluation.objects.cases import GUIDANCE, REDRAWN, STEPS, scene_spec
from privgen.evaluation.watermark.generation import as_saved, draw_keys
from privgen.hub import load_extra
from privgen.io.progress import Bar
from privgen.models.object_code import ObjectCode
from privgen.watermark.objects.carrier import ObjectCarrier, TileCarrier
from privgen.watermark.objects.code import CodeReader
from privgen.watermark.objects.code_carrier import LatentCarrier
from privgen.watermark.objects.in_pipeline import marking_objects
from privgen.watermark.objects.keys import OBJECT_CARRIERS, ObjectCarrierName, ObjectKeys


PSNR = 29.0
"""Quality inside the masks, in dB, the same for all carriers."""
REGENERATED = (60, 100, 200)
"""Noise from which images are regenerated, in steps of a schedule of 1000."""
SETTINGS = ("one_object", "two_objects", "three_objects")
"""Of the scenes."""

Scores = dict[str, Measured | None]


def compare_carriers(pipe: Any, n: int, seed: int) -> dict[str, dict[str, Scores]]:
    """Mark the same generated scenes with each carrier, all at `PSNR`; return the scores by carrier and setting.

    Args:
        pipe: mini.
        n: scenes with one, two and three objects, each.
        seed: of scenes, keys and noise.
    """
    code: ObjectCode = load_extra("object_code", pipe, device=pipe.device)
    specs = {name: [scene_spec(name, number, seed) for number in range(n)] for name in SETTINGS}
    names: Bar[ObjectCarrierName] = Bar(OBJECT_CARRIERS, "carriers", unit="carrier")
    return {name: carrier_scores(pipe, specs, seed, name, code) for name in names}


def carrier_scores(
    pipe: Any,
    specs: Mapping[str, Sequence[SceneSpec]],
    seed: int,
    carrier: ObjectCarrierName,
    code: ObjectCode | None = None,
) -> dict[str, Scores]:
    """Mark the objects of generated scenes with a carrier, and read them as they are and after attacks.

    `bits` are read inside the masks in which they were written; keys are found without a mask.

    Args:
        pipe: mini.
        specs: what the scenes show, by setting.
        seed: of keys and noise.
        carrier: what the marks are written with.
        code: of the pipeline's latents; tiles need none.

    Returns:
        Scores of each setting, as it is and after JPEG 75 and regeneration.
    """
    again = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    attacks: dict[str, Callable[..., Tensor]] = {"": lambda images, generator: images, "_jpeg_75": JPEG(75)}
    attacks |= {f"_regeneration_{t}": Regeneration(t, model=pipe, fit="whole") for t in REGENERATED}
    reader: ObjectCarrier = TileCarrier()
    if carrier != "tile":
        if code is None:
            raise UsageError(f"The carrier {carrier} needs a code of objects; load it from the model.")
        reader = LatentCarrier(CodeReader(pipe, code), steps=0)
    found: dict[str, Scores] = {}
    for setting, scenes in specs.items():
        generator = torch.Generator().manual_seed(seed)
        rows: dict[str, list[tuple[float, float]]] = {suffix: [] for suffix in attacks}
        qualities: list[float] = []
        for number, spec in enumerate(scenes):
            scene, keys = draw(spec), draw_keys(len(spec.objects), generator, f"owner-{number}")
            named = {item.noun: key for item, key in zip(spec.objects, keys, strict=True)}
            given = {"prompt": scene.caption, "image": torch.from_numpy(scene.pixels)[None], "strength": REDRAWN}
            given |= {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "pt"}
            owners = ObjectKeys(named, psnr=PSNR, carrier=carrier)
            with silent(again), marking_objects(again, owners, code) as record:
                marked = as_saved(again(**given, generator=torch.Generator().manual_seed(number)).images.cpu())
            [objects] = record
            qualities += [item.object_psnr for item in objects if item.area > 0]
            for suffix, attack in attacks.items():
                image = as_saved(attack(marked, generator=torch.Generator().manual_seed(number))[0].cpu())
                seen, places = reader.look(image), reader.locate(image, keys)
                rows[suffix] += [
                    (reader.matches(seen, item.mask.cpu(), key) / 48, place.p_value)
                    for item, key, place in zip(objects, keys, places, strict=True)
                ]
        for suffix, read in rows.items():
            found[setting + suffix] = {
                "bits": mean([bits for bits, _ in read]),
                "tpr_1e-3": fraction(p <= 1e-3 for _, p in read),
                "tpr_1e-6": fraction(p <= 1e-6 for _, p in read),
                "object_psnr": mean(qualities),
            }
    return found
