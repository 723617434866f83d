"""Claims: what is to be signed about one image, and the manifest that says it.

Sources: C2PA specification 2.2 (2025), sections "Actions", "Soft binding" and "Regions of interest"; CAWG metadata
assertion 1.1 (2025).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from privgen import __version__
from privgen.provenance.label import NAMESPACES, SOURCE_TYPES, Label


Box: TypeAlias = tuple[float, float, float, float]
"""Left, top, right and bottom edge, as fractions of the image's width and height."""

ALGORITHMS: dict[Literal["tile", "latent"], str] = {"tile": "org.privgen.tile.1", "latent": "org.privgen.latent.1"}
"""Name of the soft binding, by the kind of mark. C2PA's list of algorithms does not hold them yet."""

PARENT = "xmp:iid:parent"


@dataclass(frozen=True)
class SoftBinding:
    """A mark, by which the image and its credentials find each other again when they were separated.

    Attributes:
        key_id: public id of the key.
        payload: the ID that the mark carries.
        kind: of the mark.
        name: of the object that carries it; empty for the whole image.
        box: of the object; None for the whole image.
    """

    key_id: str
    payload: int | None = None
    kind: Literal["tile", "latent"] = "tile"
    name: str = ""
    box: Box | None = None

    @property
    def value(self) -> str:
        """Its value in a manifest: the key's id, and the payload behind a colon."""
        return self.key_id if self.payload is None else f"{self.key_id}:{self.payload}"

    @classmethod
    def of_block(cls, block: Mapping[str, Any], kind: Literal["tile", "latent"]) -> "SoftBinding":
        """Read a block of a `c2pa.soft-binding` assertion. A payload that is no number is left out."""
        key_id, _, payload = str(block.get("value", "")).partition(":")
        number = int(payload) if payload.isdecimal() and len(payload) <= 10 else None
        region = block.get("scope", {}).get("region")
        if region is None:
            return cls(key_id, number, kind)
        shape = region["region"][0]["shape"]
        left, top = (float(shape["origin"][axis]) / 100 for axis in "xy")
        box = (left, top, left + float(shape["width"]) / 100, top + float(shape["height"]) / 100)
        return cls(key_id, number, kind, str(region.get("name", "")), box)

    def block(self) -> dict[str, Any]:
        """The block of a `c2pa.soft-binding` assertion."""
        if self.box is None:
            return {"scope": {}, "value": self.value}
        left, top, right, bottom = (100 * edge for edge in self.box)
        shape: dict[str, Any] = {"type": "rectangle", "unit": "percent", "origin": {"x": left, "y": top}}
        shape |= {"width": right - left, "height": bottom - top}
        region = {"name": self.name or "object", "region": [{"type": "spatial", "shape": shape}]}
        return {"scope": {"region": region}, "value": self.value}


@dataclass(frozen=True)
class Claim:
    """What is signed about one image.

    Attributes:
        title: name of the file.
        label: what the image's metadata says of its origin; it is repeated under the signature.
        bindings: the marks that the image carries.
        parent: content and format ("PNG", "JPEG", ...) of the file that the image was made from; None if a model made
            it. Credentials in it become a part of the new ones.
    """

    title: str
    label: Label = field(default_factory=Label)
    bindings: Sequence[SoftBinding] = ()
    parent: tuple[bytes, str] | None = field(default=None, repr=False)

    def manifest(self) -> dict[str, Any]:
        """The definition of a manifest, as c2pa-rs takes it."""
        metadata = self.label.properties()
        contexts = {prefix: NAMESPACES[prefix] for prefix in sorted({name.partition(":")[0] for name in metadata})}
        assertions: list[dict[str, Any]] = [{"label": "c2pa.actions.v2", "data": {"actions": self._actions()}}]
        if metadata:
            data = {"@context": contexts, **metadata}
            assertions.append({"label": "cawg.metadata", "kind": "Json", "data": data})
        for kind, algorithm in ALGORITHMS.items():
            if blocks := [binding.block() for binding in self.bindings if binding.kind == kind]:
                assertions.append({"label": "c2pa.soft-binding", "data": {"alg": algorithm, "blocks": blocks}})
        generator = {"name": "privgen", "version": __version__}
        return {"title": self.title, "claim_generator_info": [generator], "assertions": assertions}

    def _actions(self) -> list[dict[str, Any]]:
        """What was done to the image, in order."""
        source = {"digitalSourceType": SOURCE_TYPES + self.label.source_type} if self.label.source_type else {}
        if self.parent is None:
            agent = {"name": self.label.system or "privgen"}
            agent |= {"version": self.label.system_version} if self.label.system_version else {}
            actions: list[dict[str, Any]] = [{"action": "c2pa.created", "softwareAgent": agent, **source}]
        else:
            opened = {"action": "c2pa.opened", "parameters": {"ingredientIds": [PARENT]}}
            actions = [opened, {"action": "c2pa.edited", **source}]
        return actions + ([{"action": "c2pa.watermarked.bound"}] if self.bindings else [])
