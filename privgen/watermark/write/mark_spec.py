"""How a mark is written: the value that all writers take."""

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from privgen.errors import UsageError
from privgen.provenance.claim import SoftBinding
from privgen.watermark.key import Key
from privgen.watermark.objects.keys import OBJECT_CARRIERS, ObjectKeys
from privgen.watermark.tile.embed import PSNR as TILE_PSNR
from privgen.watermark.tile.payload_code import check_payload
from privgen.watermark.token import Token, check_tau


NetworkCarrier = Literal["token", "latent"]
"""A carrier that a model's networks write and read."""

Carrier = Literal["tile", "token", "latent", "tile+latent"]
"""What a mark is written with; "tile+latent" is both in one image, each with its part of the quality."""

NETWORK_CARRIERS: tuple[NetworkCarrier, ...] = get_args(NetworkCarrier)
CARRIERS: tuple[Carrier, ...] = get_args(Carrier)

NETWORK_PSNR = 38.1
"""Quality of an image that networks alone have marked against the image, in dB, if nothing else is asked for."""


@dataclass(frozen=True)
class MarkSpec:
    """How a mark is written.

    Attributes:
        carrier: what the mark is written with: "tile", "token", "latent", or "tile+latent"; None is the model's own
            choice.
        psnr: quality of a marked image against the image, in dB; higher is fainter; None is what suits the carrier,
            42 with a tile, `NETWORK_PSNR` without. In generated images only tiles have a quality: what the other
            carriers write is as their model makes it.
        tau: the mark of a generated image acts on timesteps t <= tau, of 1000; None is what suits the carrier.
        robust_steps: gradient steps that fit the mark in the latents to its image, so that it survives regeneration
            better; 0 is none.
        seed: of the noise that the carrier "token" works through on existing images.
        payload: an ID, 0..4294967295, that the tile carries besides the key's message; None is none. See
            `privgen.watermark.tile.payload`.

    Raises:
        UsageError: a value out of its range, or values that exclude each other.
    """

    carrier: Carrier | None = None
    psnr: float | None = None
    tau: float | None = None
    robust_steps: int = 0
    seed: int = 0
    payload: int | None = None

    def __post_init__(self) -> None:
        if self.carrier not in (None, *CARRIERS):
            raise UsageError(f"expected one of the carriers {', '.join(CARRIERS)}, got {self.carrier!r}")
        if self.psnr is not None and not self.psnr > 0:
            raise UsageError(f"expected a quality above 0 dB, got {self.psnr}")
        if self.tau is not None:
            check_tau(self.tau)
        if self.robust_steps < 0:
            raise UsageError(f"expected at least 0 robust steps, got {self.robust_steps}")
        if self.robust_steps and self.carrier in ("tile", "token"):
            raise UsageError("Robust steps fit a pattern in the latents; use them with the carrier latent.")
        if self.robust_steps and self.tau is not None:
            raise UsageError("Robust steps fit a mark that is added after the last step; leave tau out.")
        if self.tau is not None and self.has_tile:
            raise UsageError("A tile is added to the finished image; leave tau out, or use another carrier.")
        if self.payload is not None:
            check_payload(self.payload)
            if self.carrier in ("latent", "token"):
                raise UsageError("A payload is written in a tile; use the carrier tile or tile+latent.")

    def or_carrier(self, default: Carrier) -> "MarkSpec":
        """Return the spec with a carrier: its own, or a default if it names none.

        A payload needs a tile. So with a payload the default "latent" becomes "tile+latent", and "token" a tile alone.

        Args:
            default: the carrier if the spec names none.
        """
        if self.carrier is not None:
            return self
        if self.payload is not None:
            default = "tile+latent" if default == "latent" else "tile" if default == "token" else default
        return replace(self, carrier=default)

    @property
    def has_tile(self) -> bool:
        """Whether a tile is written."""
        return self.carrier in ("tile", "tile+latent")

    @property
    def network_carrier(self) -> NetworkCarrier | None:
        """The carrier whose networks write; None if a tile alone is written, or the carrier is not chosen yet."""
        return None if self.carrier in (None, "tile") else "token" if self.carrier == "token" else "latent"

    def bindings(self, key_id: str) -> list[SoftBinding]:
        """How credentials name the mark of a key on a whole image: by its tile, or by what networks have written.

        Args:
            key_id: public id of the key.
        """
        return [SoftBinding(key_id, self.payload, "tile" if self.has_tile else "latent")]

    @property
    def quality(self) -> float:
        """Quality in dB, of a spec whose carrier is chosen."""
        if self.psnr is not None:
            return self.psnr
        return TILE_PSNR if self.has_tile else NETWORK_PSNR


@dataclass(frozen=True)
class KeyMark:
    """Whose mark is written, and how.

    Attributes:
        key: whose mark; None if a token alone says so.
        spec: how it is written.
        token: of the key, to write with instead of the token that the model's mapper makes; the carrier is "token".
        objects: which key owns which object of the image. The spec's carrier is theirs, "tile" if it names none.
            `key` is then None.

    Raises:
        UsageError: neither key nor token nor objects, objects and something else, a token of another key, or a token
            and another carrier.
    """

    key: Key | None
    spec: MarkSpec = field(default_factory=MarkSpec)
    token: Token | None = None
    objects: ObjectKeys | None = None

    def __post_init__(self) -> None:
        if self.objects is not None:
            if self.key is not None or self.token is not None:
                raise UsageError("With objects, give the key for all that is outside as their rest, and no token.")
            carrier = next((name for name in OBJECT_CARRIERS if name == (self.spec.carrier or "tile")), None)
            if carrier is None or self.spec.tau is not None or self.spec.robust_steps:
                raise UsageError(
                    f"Objects are marked with one of the carriers {', '.join(OBJECT_CARRIERS)}; leave tau and robust "
                    "steps out."
                )
            object.__setattr__(self, "spec", replace(self.spec, carrier=carrier))
            object.__setattr__(self, "objects", replace(self.objects, carrier=carrier))
            return
        if self.token is None:
            if self.key is None:
                raise UsageError("Give a key or a token.")
            return
        if self.key is not None and self.key.key_id != self.token.key_id:
            raise UsageError(
                f"The token is of the key {self.token.key_id}, and the key {self.key.name} is {self.key.key_id}; give "
                "one of them alone."
            )
        object.__setattr__(self, "spec", with_token_carrier(self.spec))

    @property
    def key_id(self) -> str:
        """Public id of the key; with objects, that of the rest's, or "" if it has none."""
        if self.objects is not None:
            return "" if self.objects.rest is None else self.objects.rest.key_id
        owner = self.key if self.key is not None else self.token
        assert owner is not None  # checked when the value was made
        return owner.key_id


def with_token_carrier(spec: MarkSpec) -> MarkSpec:
    """A spec for a mark that a token writes.

    Raises:
        UsageError: it names another carrier, or robust steps.
    """
    if spec.carrier not in (None, "token"):
        raise UsageError(f"A token cannot write with the carrier {spec.carrier}; leave the carrier out.")
    return replace(spec, carrier="token")
