"""A text-to-image model that writes marks with tokens, for training images."""

from pathlib import Path

import torch
from torch import Tensor, nn

from privgen.data.scenes import sample_spec
from privgen.diffusion.sampling import generate
from privgen.hub import load_pipeline
from privgen.models.mappers import TokenMapper
from privgen.watermark.token import token_embeddings
from privgen.watermark.write.with_token import token_residuals


_FIRST_SCENE = 4 * 10**12  # the first of the scenes that no training run draws


class TokenWriter(nn.Module):
    """A frozen text-to-image model that writes marks with tokens.

    Args:
        folder: a Stable Diffusion folder that has a token mapper in `privgen/token_mapper`.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.pipe = load_pipeline(folder, safety_checker=False, device="cpu", dtype="float32")
        self.parts = nn.ModuleList([self.pipe.unet, self.pipe.vae, self.pipe.text_encoder])
        self.mapper = TokenMapper.from_pretrained(folder / "privgen" / "token_mapper", use_safetensors=True)
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, images: Tensor, bits: Tensor, generators: list[torch.Generator]) -> Tensor:
        """Compute how the tokens of messages change images; see `token_residuals`.

        Args:
            images: (B, 3, S, S) in [0, 1].
            bits: (B, n_bits) of 0 and 1.
            generators: one for each image.

        Returns:
            (B, 3, S, S), to be added to the images.
        """
        embeddings, negative = token_embeddings(self.mapper, bits)
        tau = float(self.mapper.config.tau)
        return token_residuals(
            images, embeddings, negative_token=negative, pipe=self.pipe, tau=tau, generator=generators
        )

    @torch.no_grad()
    def unmarked(self, count: int, seed: int) -> Tensor:
        """Generate images without a mark, (count, 3, S, S) in [0, 1], on the CPU."""
        first = _FIRST_SCENE + 100_000_000 * seed
        specs = [sample_spec(first + i, count=1 + i % 2, textured=False) for i in range(count)]
        prompts, seeds = [spec.caption for spec in specs], [first + i for i in range(count)]
        return generate(self.pipe, prompts, seeds, progress="generated images")
