"""The networks of one model that write and read marks, loaded when they are first needed."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from huggingface_hub import snapshot_download

from privgen.errors import PrivgenError, UsageError
from privgen.hub import CONFIG, Placement, find_extra, load_extra, load_pipeline, read_config, resolve_model
from privgen.models.aligner import Aligner
from privgen.models.object_code import ObjectCode
from privgen.watermark.protocols import ExtractorLike, LatentMapperLike, TokenMapperLike
from privgen.watermark.write.mark_spec import NETWORK_CARRIERS, Carrier, NetworkCarrier


@dataclass
class Networks:
    """A model's pipeline and the networks that go with it.

    Each is loaded when it is first asked for. Pickled, such an object holds the model's name and not the weights,
    which are loaded again where it is unpickled; networks that were set by hand are pickled with it.

    Args:
        model: an embedded model's name, a folder or a Hub id; None if all networks are set by hand.
        placement: where they compute.
        revision: branch, tag or commit of a Hub id.
        safety_checker: whether the pipeline keeps the model's own. Its black images would be read as marked or not.
    """

    model: str | None = "mini"
    placement: Placement = field(default_factory=Placement)
    revision: str | None = None
    safety_checker: bool = False
    _set: dict[str, Any] = field(default_factory=dict, repr=False)
    _loaded: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        *,
        pipeline: DiffusionPipeline | None = None,
        extractor: ExtractorLike | None = None,
        latent_mapper: LatentMapperLike | None = None,
        token_mapper: TokenMapperLike | None = None,
        aligner: Aligner | None = None,
        object_code: ObjectCode | None = None,
    ) -> "Networks":
        """Networks that are in memory already; those left out are not there."""
        given = {"pipeline": pipeline, "extractor": extractor, "latent_mapper": latent_mapper}
        given |= {"token_mapper": token_mapper, "aligner": aligner, "object_code": object_code}
        return cls(None, _set={name: network for name, network in given.items() if network is not None})

    @property
    def pipeline(self) -> Any:
        """The text-to-image pipeline."""
        return self._get("pipeline")

    @property
    def extractor(self) -> Any:
        """Reads marks."""
        return self._get("extractor")

    @property
    def aligner(self) -> Any:
        """Reads marks in parts of an image."""
        return self._get("aligner")

    @property
    def object_code(self) -> Any:
        """Writes and reads the marks of objects in latents."""
        return self._get("object_code")

    def mapper(self, carrier: NetworkCarrier) -> Any:
        """The network that makes the marks of a carrier from message bits."""
        return self._get(f"{carrier}_mapper")

    def has(self, carrier: NetworkCarrier) -> bool:
        """Whether the model can write marks with a carrier."""
        return self._has(f"{carrier}_mapper")

    @property
    def can_read(self) -> bool:
        """Whether the model has an extractor, which reads the marks of the carriers "token" and "latent"."""
        return self._has("extractor")

    @property
    def can_search(self) -> bool:
        """Whether the model has an aligner, which reads the same marks in parts of an image."""
        return self._has("aligner")

    @property
    def can_mark_objects(self) -> bool:
        """Whether the model has a code of objects, which the carriers "latent" and "token" write inside masks."""
        return self._has("object_code")

    @property
    def default_carrier(self) -> Carrier:
        """The carrier for images that the model generates.

        It is the one that the model recommends. Of networks set by hand it is the first that is there, "latent" before
        "token". A model without any network of privgen's gets a tile, which needs none.

        Raises:
            PrivgenError: the model cannot be found, or recommends a carrier that does not exist.
        """
        recommended = default_carrier(self.model) if self.model is not None else "latent"
        ordered: tuple[NetworkCarrier, ...] = (recommended, "latent", "token")
        return next((carrier for carrier in ordered if self.has(carrier)), "tile")

    @property
    def layers(self) -> Carrier:
        """The carrier for existing images: a tile, and the latents' pattern under it if the model can write one.

        Raises:
            PrivgenError: the model cannot be found.
        """
        if self.model is not None:
            default_carrier(self.model)  # a model that does not exist is an error, not one without networks
        return "tile+latent" if self.has("latent") else "tile"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": {}}

    def _has(self, name: str) -> bool:
        if name in self._set or name in self._loaded:
            return True
        if self.model is None:
            return False
        try:
            find_extra(name, self.model, revision=self.revision)
        except PrivgenError:
            return False
        return True

    def _get(self, name: str) -> Any:
        if name in self._set:
            return self._set[name]
        if self.model is None:
            raise UsageError(f"There is no {name} here; pass one, or load a model that has one.")
        if name not in self._loaded:
            place = self.placement
            if name == "pipeline":
                loaded = load_pipeline(
                    self.model,
                    device=place.device,
                    dtype=place.dtype,
                    revision=self.revision,
                    safety_checker=self.safety_checker,
                )
            else:
                loaded = load_extra(name, self.model, device=place.device, revision=self.revision)
            self._loaded[name] = loaded
        return self._loaded[name]


def default_carrier(model: str | os.PathLike[str] = "mini") -> NetworkCarrier:
    """The carrier that a model recommends by its own measurements; "latent" if it has none.

    Args:
        model: an embedded model's name, a folder or a Hub id.

    Raises:
        PrivgenError: the model cannot be found or fetched, or recommends a carrier that does not exist.
    """
    source = resolve_model(model)
    root = Path(source)
    try:
        if not root.is_dir():
            root = Path(snapshot_download(source, allow_patterns=[CONFIG]))
        carrier = read_config(root).get("default_carrier", "latent")
    except PrivgenError as error:
        raise PrivgenError(f"{str(error).rstrip('.')}; name a carrier.") from error
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise PrivgenError(f"The settings {CONFIG} of {source} cannot be read: {reason}; name a carrier.") from error
    if carrier not in NETWORK_CARRIERS:
        raise PrivgenError(
            f"The model {source} recommends the carrier {carrier!r}; name one of {', '.join(NETWORK_CARRIERS)}."
        )
    return carrier
