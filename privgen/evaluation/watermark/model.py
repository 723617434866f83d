"""The model whose marks are measured."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from privgen.evaluation.watermark.generation import Generation
from privgen.hub import Placement
from privgen.watermark.key import Key
from privgen.watermark.networks import Networks
from privgen.watermark.protocols import ExtractorLike
from privgen.watermark.watermark import Watermark
from privgen.watermark.write.mark_spec import NETWORK_CARRIERS, Carrier, MarkSpec, NetworkCarrier
from privgen.watermark.write.marker import Marker


@dataclass(frozen=True)
class WatermarkModel:
    """A model with networks that write and read marks.

    Attributes:
        name: what results call it.
        networks: its pipeline and the networks that go with it.
        carriers: the carriers to measure, the default one first; empty if the model has none of those asked for.
        robust_steps: gradient steps that fit each mark of the carrier "latent" to its image; see
            `privgen.watermark.write.robust_mark`.
    """

    name: str
    networks: Networks = field(repr=False)
    carriers: tuple[NetworkCarrier, ...] = NETWORK_CARRIERS
    robust_steps: int = 0

    @property
    def pipeline(self) -> Any:
        """The text-to-image pipeline."""
        return self.networks.pipeline

    @property
    def extractor(self) -> ExtractorLike:
        """The network that reads the marks."""
        extractor: ExtractorLike = self.networks.extractor
        return extractor

    def spec(self, carrier: Carrier, seed: int = 0) -> MarkSpec:
        """How marks of a carrier are written; only those of the carrier "latent" take robust steps.

        Args:
            carrier: what marks are written with.
            seed: of the noise that the carrier "token" works through on existing images.
        """
        return MarkSpec(carrier, robust_steps=self.robust_steps if carrier == "latent" else 0, seed=seed)

    def marker(self, carrier: Carrier, seed: int = 0) -> Marker:
        """The writer of marks on existing images; arguments as for `spec`."""
        return Marker(self.networks, self.spec(carrier, seed))

    def marking(self, generation: Generation, keys: Sequence[Key], carrier: Carrier) -> AbstractContextManager[Any]:
        """A block in which `generation.images` returns marked images.

        Args:
            generation: what is generated.
            keys: whose marks, one for each image of a batch.
            carrier: what they are written with.
        """
        steps = self.spec(carrier).robust_steps
        return Watermark(self.networks).on(generation.pipeline, keys, carrier=carrier, robust_steps=steps)


def load_watermark_model(
    model: str | os.PathLike[str] = "mini",
    placement: Placement | None = None,
    *,
    carriers: Sequence[NetworkCarrier] = NETWORK_CARRIERS,
    robust_steps: int = 0,
) -> WatermarkModel:
    """Load a model and its networks, without a safety checker: its black images would be measured as marks.

    Args:
        model: an embedded model's name, a folder or a Hub id.
        placement: where the networks compute.
        carriers: the carriers to measure; those that the model lacks are left out.
        robust_steps: see `WatermarkModel`.

    Raises:
        PrivgenError: the model, its extractor or a mapper cannot be found or read.
        UsageError: a device or a precision that does not exist.
    """
    name = os.fspath(model)
    networks = Networks(name, placement or Placement())
    found = [carrier for carrier in dict.fromkeys(carriers) if networks.has(carrier)]
    # Load now, so that what is missing or damaged shows before the work begins.
    _ = networks.extractor, networks.pipeline, [networks.mapper(carrier) for carrier in found]
    default = networks.default_carrier
    return WatermarkModel(name, networks, tuple(sorted(found, key=lambda c: c != default)), robust_steps)
