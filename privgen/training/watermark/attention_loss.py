"""A loss that trains cross-attention to attend, at each place of the canvas, to the word that is about this place."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class AttentionLoss:
    """Measures how well cross-attention finds the word of each cell, from the layers' own queries and keys.

    The canvas is cut into cells, and a prompt has one word for each, in rows from the upper left. The loss of a layer
    is the cross-entropy by which its positions attend to the word of the cell that they lie in.

    Args:
        layers: cross-attention layers on square grids of positions. Only the first half of their heads counts.
        cells: number of cells along each side of the canvas.

    Raises:
        ValueError: there are no layers.
    """

    def __init__(self, layers: Sequence[nn.Module], cells: int) -> None:
        if not layers:
            raise ValueError("expected cross-attention below the UNet's finest level, found none")
        self.cells, self.losses = cells, list[Tensor]()
        self.starts: Tensor | None = None
        for layer in layers:
            layer.register_forward_pre_hook(self._measure, with_kwargs=True)

    @contextmanager
    def collecting(self, starts: Tensor) -> Iterator[None]:
        """Collect the losses of all layers that run inside the block.

        Args:
            starts: (B,), the position in each encoded prompt at which its words begin.
        """
        self.starts = starts
        try:
            yield
        finally:
            self.starts = None

    def pop_all(self) -> list[Tensor]:
        """The losses that were collected since the last call."""
        losses, self.losses = self.losses, []
        return losses

    def _measure(self, layer: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        if self.starts is None:
            return
        queries, keys = layer.to_q(inputs[0]), layer.to_k(named["encoder_hidden_states"])
        queries, keys = (x.unflatten(2, (layer.heads, -1))[:, :, : layer.heads // 2] for x in (queries, keys))
        logits = layer.scale * torch.einsum("bqhd,bkhd->bkqh", queries, keys)
        side = round(logits.shape[2] ** 0.5)
        line = torch.arange(side) * self.cells // side
        cell = (line[:, None] * self.cells + line).flatten()
        wanted = (self.starts[:, None] + cell)[:, :, None].expand(-1, -1, logits.shape[3])
        self.losses.append(nn.functional.cross_entropy(logits, wanted.to(logits.device)))
