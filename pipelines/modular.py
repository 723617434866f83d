"""A block of Diffusers' modular pipelines that marks images after they are decoded.

    blocks = StableDiffusionXLAutoBlocks()
    blocks.sub_blocks.insert("mark", MarkStep(mark), len(blocks.sub_blocks))
    pipe = blocks.init_pipeline("stabilityai/stable-diffusion-xl-base-1.0")
    pipe.load_components()
    images = pipe(prompt="a cat", key=key, output="images")

The block goes behind the one that decodes, here at the end.
"""

from typing import Any

import torch
from diffusers.modular_pipelines import InputParam, ModularPipelineBlocks, OutputParam, PipelineState

from privgen.errors import UsageError
from privgen.watermark.key import Key
from privgen.watermark.watermark import Watermark
from privgen.watermark.write.mark_spec import Carrier


class MarkStep(ModularPipelineBlocks):
    """Marks the decoded images of a modular pipeline, as `Watermark.embed` does.

    Put it after the step that decodes. It works with the blocks of every model whose images are Pillow images, arrays
    or tensors. It reads nothing but the images, so the images without it are bit for bit those of the pipeline.

    Args:
        mark: writes the marks; None is `Watermark.from_pretrained("mini")`.
        carrier: see `privgen.watermark.watermark.Watermark.embed`.
        psnr: see `privgen.watermark.watermark.Watermark.embed`.

    Raises:
        ValueError: in a run, `key` is missing.
        UsageError: in a run, the images were not decoded (`output_type="latent"`).
    """

    def __init__(
        self, mark: Watermark | None = None, *, carrier: Carrier | None = None, psnr: float | None = None
    ) -> None:
        super().__init__()
        self.mark = Watermark.from_pretrained("mini") if mark is None else mark
        self.carrier = carrier
        self.psnr = psnr

    @property
    def description(self) -> str:
        """What the block does."""
        return "Step that writes the invisible mark of a key into the decoded images"

    @property
    def inputs(self) -> list[InputParam]:
        """Values that the block reads."""
        return [
            InputParam("images", required=True, description="The images from the decode step"),
            InputParam("key", required=True, type_hint=Key, description="Whose mark: one key, or one for each image"),
            InputParam("payload", type_hint=int, description="A number, 0..4294967295, that the mark carries as well"),
            InputParam("output_type", default="pil", description="Kind of the images; they must be decoded"),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """Values that the block writes."""
        return [OutputParam("images", description="The marked images, of the kind that came in")]

    @torch.no_grad()
    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        """Mark the images."""
        block = self.get_block_state(state)
        if block.output_type == "latent":
            raise UsageError('MarkStep marks decoded images; leave out output_type="latent".')
        block.images = self.mark.embed(
            block.images, block.key, carrier=self.carrier, psnr=self.psnr, payload=block.payload
        )
        self.set_block_state(state, block)
        return components, state
