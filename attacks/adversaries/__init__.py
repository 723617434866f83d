"""Adversaries: methods that learn a subject from images, and so what protection is tested with.

An adversary is a frozen value. It learns from images, and gives a new pipeline that draws the subject:

    from privgen.attacks.adversaries import DreamBoothLoRA

    personalised = DreamBoothLoRA("robot").fit(pipeline, images, generator=torch.Generator().manual_seed(0))
    picture = personalised("a robot on a blue background").images[0]

`ADVERSARIES` has their classes by name.
"""

from privgen.attacks.adversaries.base import Adversary, Pace
from privgen.attacks.adversaries.dreambooth import DreamBooth, Prior
from privgen.attacks.adversaries.images import mixed, purified, squares
from privgen.attacks.adversaries.lora import DreamBoothLoRA
from privgen.attacks.adversaries.textual_inversion import PromptEmbeds, TextualInversion, load_prompt_embeds
from privgen.errors import UsageError


ADVERSARIES: dict[str, type[Adversary]] = {
    kind.name: kind for kind in (TextualInversion, PromptEmbeds, DreamBooth, DreamBoothLoRA)
}
"""The adversaries by name."""


def adversary_class(name: str) -> type[Adversary]:
    """Return the class of an adversary.

    Raises:
        UsageError: there is no adversary of that name.
    """
    if name not in ADVERSARIES:
        raise UsageError(f"{name!r} is not an adversary; choose from {', '.join(ADVERSARIES)}.")
    return ADVERSARIES[name]


__all__ = [
    "ADVERSARIES",
    "Adversary",
    "DreamBooth",
    "DreamBoothLoRA",
    "Pace",
    "Prior",
    "PromptEmbeds",
    "TextualInversion",
    "adversary_class",
    "load_prompt_embeds",
    "mixed",
    "purified",
    "squares",
]
