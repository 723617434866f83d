"""DreamBooth with low-rank adapters: what most people use to teach a model a subject."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from privgen.attacks.adversaries.base import Adversary, Pace
from privgen.attacks.adversaries.dreambooth import Prior, prior_examples
from privgen.attacks.adversaries.learning import Examples, Learner, share_network, with_parts
from privgen.errors import PrivgenError, UsageError
from privgen.models.initialise import seeded_weights


LAYERS = ("to_q", "to_k", "to_v", "to_out.0")
"""The layers of attention that get adapters."""


@dataclass(frozen=True)
class DreamBoothLoRA(Adversary):
    """DreamBooth with LoRA: learns low-rank changes of the UNet's attention (arXiv 2106.09685).

    It needs the package peft: `pip install privgen[adversaries]`.

    Args:
        word: a rare word of the vocabulary, such as "sks". On mini, a noun that it was not trained on.
        prompts: see `Adversary`.
        lr: see `Adversary`.
        batch_size: see `Adversary`.
        rank: of the changes.
        prior_preservation: images of the model's own that it trains on as well; None is off.

    Raises:
        UsageError: see `Adversary`; or the rank is below 1.
    """

    name: ClassVar[str] = "lora"
    pace: ClassVar[Pace] = Pace(lr=1e-4, effort=800)
    small_pace: ClassVar[Pace] = Pace(lr=3e-3, effort=240)

    _: KW_ONLY
    rank: int = 8
    prior_preservation: Prior | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if self.rank < 1:
            raise UsageError(f"The rank is {self.rank}; give at least 1.")

    def _learner(self, pipeline: Any, prompts: tuple[str, ...], generator: torch.Generator) -> Learner:
        try:
            from peft import LoraConfig
        except ImportError as error:
            raise PrivgenError(
                'The adversary lora needs the package peft; install it with pip install "privgen[adversaries]".'
            ) from error
        unet = share_network(pipeline.unet)
        seed = int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
        with seeded_weights(seed):
            unet.add_adapter(LoraConfig(r=self.rank, lora_alpha=self.rank, target_modules=list(LAYERS)))
        learnt = [weight for weight in unet.parameters() if weight.requires_grad]
        return Learner(with_parts(pipeline, unet=unet), ("unet",), learnt)

    def _more_examples(self, pipeline: Any, generator: torch.Generator) -> list[Examples]:
        return prior_examples(self.prior_preservation, pipeline, generator)

    def save(self, pipeline: Any, folder: Path) -> Path:
        """Write `pytorch_lora_weights.safetensors`, for `pipeline.load_lora_weights`."""
        from peft.utils import get_peft_model_state_dict

        layers = {name: tensor.contiguous() for name, tensor in get_peft_model_state_dict(pipeline.unet).items()}
        pipeline.save_lora_weights(folder, unet_lora_layers=layers)
        return folder / "pytorch_lora_weights.safetensors"
