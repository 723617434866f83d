"""A loss by which cross-attention learns to find, at every place of the canvas, the word that is about it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class AddressLoss:
    """Whether cross-attention finds the word of each cell; told by the layers' own queries and keys.

    Args:
        layers: cross-attention layers on square grids of positions, whose first half of heads is to attend so.
        cells: along each side of the canvas.
    """

    def __init__(self, layers: Sequence[nn.Module], cells: int) -> None:
        if not layers:
            raise ValueError("expected cross-attention below the UNet's finest level, found none")
        self.cells, self.losses = cells, list[Tensor]()
        self.starts: Tensor | None = None
        for layer in layers:
            layer.register_forward_pre_hook(self._hear, with_kwargs=True)

    @contextmanager
    def listening(self, starts: Tensor) -> Iterator[None]:
        """Collect losses of what is computed inside; `starts`, (B,), is where each prompt's words begin."""
        self.starts = starts
        try:
            yield
        finally:
            self.starts = None

    def pop_all(self) -> list[Tensor]:
        """The losses collected since the last call."""
        losses, self.losses = self.losses, []
        return losses

    def _hear(self, layer: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
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
