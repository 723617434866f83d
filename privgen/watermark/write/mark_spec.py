"""How a mark is written: the value that all writers take."""

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from privgen.errors import UsageError
from privgen.watermark.key import Key
from privgen.watermark.token import Token, check_tau


Carrier = Literal["token", "latent"]

CARRIERS: tuple[Carrier, ...] = get_args(Carrier)

PSNR = 38.1
"""Quality of a marked image against the image, in dB, if nothing else is asked for."""


@dataclass(frozen=True)
class MarkSpec:
    """How a mark is written.

    Attributes:
        carrier: "token" or "latent", what the mark is written with; None is the model's own choice.
        psnr: quality of a marked image against the image, in dB; higher is fainter. For existing images only: a
            generated image is as its model makes it.
        tau: the mark of a generated image acts on timesteps t <= tau, of 1000; None is what suits the carrier.
        robust_steps: gradient steps that fit the mark of the carrier "latent" to its image, so that it survives
            regeneration better; 0 is none.
        seed: of the noise that the carrier "token" works through on existing images.

    Raises:
        UsageError: a value out of its range, or values that exclude each other.
    """

    carrier: Carrier | None = None
    psnr: float = PSNR
    tau: float | None = None
    robust_steps: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.carrier not in (None, *CARRIERS):
            raise UsageError(f"expected the carrier token or latent, got {self.carrier!r}")
        if not self.psnr > 0:
            raise UsageError(f"expected a quality above 0 dB, got {self.psnr}")
        if self.tau is not None:
            check_tau(self.tau)
        if self.robust_steps < 0:
            raise UsageError(f"expected at least 0 robust steps, got {self.robust_steps}")
        if self.robust_steps and self.carrier == "token":
            raise UsageError("Robust steps fit a pattern in the latents; use them with the carrier latent.")
        if self.robust_steps and self.tau is not None:
            raise UsageError("Robust steps fit a mark that is added after the last step; leave tau out.")


@dataclass(frozen=True)
class KeyMark:
    """Whose mark is written, and how.

    Attributes:
        key: whose mark; None if a token alone says so.
        spec: how it is written.
        token: of the key, to write with instead of the token that the model's mapper makes; the carrier is "token".

    Raises:
        UsageError: neither key nor token, a token of another key, or a token and the carrier "latent".
    """

    key: Key | None
    spec: MarkSpec = field(default_factory=MarkSpec)
    token: Token | None = None

    def __post_init__(self) -> None:
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
        """Public id of the key."""
        owner = self.key if self.key is not None else self.token
        assert owner is not None  # checked when the value was made
        return owner.key_id


def with_token_carrier(spec: MarkSpec) -> MarkSpec:
    """A spec for a mark that a token writes.

    Raises:
        UsageError: it names the carrier "latent", or robust steps.
    """
    if spec.carrier == "latent":
        raise UsageError("A token cannot write with the carrier latent; leave the carrier out.")
    return replace(spec, carrier="token")
