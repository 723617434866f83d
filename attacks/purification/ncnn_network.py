"""Reads convolutional networks from ncnn's files, a graph as text (`.param`) and its weights (`.bin`), into PyTorch.

Format: https://github.com/Tencent/ncnn/wiki/param-and-model-file-structure. It knows the layers that super-resolution
networks are made of, and weights in float32 or float16. It never runs code from the files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import skip_init

from privgen.errors import PrivgenError


_MAGIC = "7767517"
_HALF = 0x01306B47
"""Flag in front of weights in float16; the flag of float32 is 0."""
_ARRAY = -23300
"""Array 0 has this key, array 1 the next lower one, and so on."""

Settings: TypeAlias = dict[int, tuple[float, ...]]
"""The numbers of a layer by key; most keys have one number."""


@dataclass(frozen=True)
class Layer:
    """A layer: one line of the graph.

    Attributes:
        kind: type of the layer, such as "Convolution".
        name: name of the layer.
        inputs: names of the tensors that it reads.
        outputs: names of the tensors that it writes.
        settings: see `Settings`.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    settings: Settings

    def number(self, key: int, default: float = 0) -> float:
        """Return a setting, or the default of ncnn if the line does not hold it."""
        return self.settings.get(key, (default,))[0]


class NcnnNetwork(nn.Module):
    """An ncnn network that runs in PyTorch, from images to images.

    Args:
        layers: in the order in which they run. The first one names the input, the last one writes the output.
        weights: the weights of the file.

    Raises:
        PrivgenError: a layer of an unknown kind, or weights that do not fit the layers.
    """

    def __init__(self, layers: Sequence[Layer], weights: Weights) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.parts = nn.ModuleDict()
        for number, layer in enumerate(layers):
            if layer.kind not in _MAKERS and layer.kind not in _FUNCTIONS:
                raise PrivgenError(f"The ncnn layer {layer.kind} is not one that this package runs.")
            if layer.kind in _MAKERS:
                self.parts[str(number)] = _MAKERS[layer.kind](layer, weights)
        weights.finish()
        last_use = {name: number for number, layer in enumerate(layers) for name in layer.inputs}
        self._finished = [
            [name for name in layer.inputs if last_use[name] == number] for number, layer in enumerate(layers)
        ]
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Run the graph.

        Args:
            images: (B, C, H, W) in [0, 1].

        Returns:
            (B, C, H * factor, W * factor).
        """
        values = {self.layers[0].outputs[0]: images}
        for number, layer in enumerate(self.layers[1:], 1):
            read = [values[name] for name in layer.inputs]
            part = self.parts[str(number)] if layer.kind in _MAKERS else None
            made = part(*read) if part is not None else _FUNCTIONS[layer.kind](layer, read)
            for name in self._finished[number]:
                values.pop(name, None)
            values |= dict.fromkeys(layer.outputs, made)
        return values[self.layers[-1].outputs[0]]


class Weights:
    """The weights in a `.bin` file; layers take them one after the other.

    Args:
        data: the file's bytes.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    def take(self, count: int) -> Tensor:
        """Take the next `count` numbers, stored as float32.

        Raises:
            PrivgenError: the file ends before that.
        """
        return torch.from_numpy(self._read("<f4", count).astype(np.float32))

    def take_tagged(self, count: int) -> Tensor:
        """Take the next `count` numbers, behind a flag that tells their type.

        Raises:
            PrivgenError: the file ends before that, or holds another type, such as 8-bit numbers.
        """
        flag = int(self._read("<u4", 1)[0])
        if flag not in (0, _HALF):
            raise PrivgenError("The ncnn weights are quantised; use float32 or float16 ones.")
        values = self._read("<f2" if flag else "<f4", count)
        self._place += -self._place % 4
        return torch.from_numpy(values.astype(np.float32))

    def finish(self) -> None:
        """Check that all weights were taken.

        Raises:
            PrivgenError: some are left.
        """
        if self._place != len(self._data):
            raise PrivgenError("The ncnn weights do not belong to this graph: some are left over.")

    def _read(self, kind: str, count: int) -> NDArray[np.generic]:
        end = self._place + count * np.dtype(kind).itemsize
        if end > len(self._data):
            raise PrivgenError("The ncnn weights do not belong to this graph: they end too early.")
        found = np.frombuffer(self._data[self._place : end], kind)
        self._place = end
        return found


def load_ncnn(param: str | os.PathLike[str]) -> NcnnNetwork:
    """Load a network in float32 and evaluation mode, without gradients of its weights.

    Args:
        param: file of the graph. The weights are beside it, in a file with the suffix `.bin`.

    Raises:
        PrivgenError: a file is missing or not in ncnn's format, or the network has unknown layers.
    """
    path = Path(param).expanduser()
    try:
        text, data = path.read_text(encoding="utf-8"), path.with_suffix(".bin").read_bytes()
    except (OSError, UnicodeDecodeError) as error:
        raise PrivgenError(f"{path} and its .bin cannot be read: {error}") from error
    try:
        return NcnnNetwork(read_graph(text), Weights(data))
    except PrivgenError as error:
        raise PrivgenError(f"{path}: {error}") from error


def read_graph(text: str) -> list[Layer]:
    """Return the layers in the text of a `.param` file.

    Raises:
        PrivgenError: the text has another format.
    """
    lines = text.split("\n")
    if lines[0].strip() != _MAGIC:
        raise PrivgenError("This is not a graph of ncnn's in text form.")
    try:
        layers = [_layer(line.split()) for line in lines[2:] if line.strip()]
    except (ValueError, IndexError) as error:
        raise PrivgenError("A line of the ncnn graph cannot be read.") from error
    if len(layers) < 2 or layers[0].kind != "Input":
        raise PrivgenError("The ncnn graph has no input, or no layers.")
    known: set[str] = set()
    for layer in layers:
        if not known.issuperset(layer.inputs):
            raise PrivgenError(f"The ncnn layer {layer.name} reads what no layer before it writes.")
        known.update(layer.outputs)
    return layers


def _layer(words: list[str]) -> Layer:
    kind, name, n_in, n_out = words[0], words[1], int(words[2]), int(words[3])
    first, last = 4 + n_in, 4 + n_in + n_out
    settings: Settings = {}
    for word in words[last:]:
        key, _, value = word.partition("=")
        numbers = tuple(float(number) for number in value.split(","))
        array = int(key) <= _ARRAY
        settings[_ARRAY - int(key) if array else int(key)] = numbers[1:] if array else numbers
    return Layer(kind, name, tuple(words[4:first]), tuple(words[first:last]), settings)


def _convolution(layer: Layer, weights: Weights) -> nn.Module:
    """Make a convolution with a square kernel, and activation 0 (none), 1 (ReLU) or 2 (leaky ReLU)."""
    n_out, side, size = (int(layer.number(key)) for key in (0, 1, 6))
    n_in, rest = divmod(size, n_out * side**2)
    if rest or layer.number(11, side) != side or layer.number(14, layer.number(4)) != layer.number(4):
        raise PrivgenError(f"The kernel of the ncnn layer {layer.name} has a shape that this package does not run.")
    conv = skip_init(
        nn.Conv2d,
        n_in,
        n_out,
        side,
        stride=int(layer.number(3, 1)),
        padding=int(layer.number(4)),
        dilation=int(layer.number(2, 1)),
        bias=bool(layer.number(5)),
    )
    conv.weight.data = weights.take_tagged(size).reshape(conv.weight.shape)
    if conv.bias is not None:
        conv.bias.data = weights.take(n_out)
    activation = int(layer.number(9))
    if activation not in (0, 1, 2):
        raise PrivgenError(f"The activation of the ncnn layer {layer.name} is not one that this package runs.")
    slope = layer.number(10) if activation == 2 else 0.0
    return nn.Sequential(conv, nn.LeakyReLU(slope)) if activation else conv


def _prelu(layer: Layer, weights: Weights) -> nn.Module:
    part = nn.PReLU(int(layer.number(0)))
    part.weight.data = weights.take(int(layer.number(0)))
    return part


def _interpolate(layer: Layer, read: list[Tensor]) -> Tensor:
    factors, kind = (layer.number(1, 1), layer.number(2, 1)), int(layer.number(0))
    if kind not in (1, 2, 3) or layer.number(6):
        raise PrivgenError(f"The ncnn layer {layer.name} resizes in a way that this package does not run.")
    if kind == 1:
        return F.interpolate(read[0], scale_factor=factors, mode="nearest")
    return F.interpolate(
        read[0], scale_factor=factors, mode="bilinear" if kind == 2 else "bicubic", align_corners=False
    )


def _add(layer: Layer, read: list[Tensor]) -> Tensor:
    """Add tensors: BinaryOp 0, or Eltwise 1, which has a coefficient for each tensor."""
    if layer.number(0) != (1 if layer.kind == "Eltwise" else 0):
        raise PrivgenError(f"The ncnn layer {layer.name} does something other than adding.")
    weights = layer.settings.get(1, ()) if layer.kind == "Eltwise" else ()
    return torch.stack([x * weight for x, weight in zip(read, weights or (1.0,) * len(read), strict=True)]).sum(0)


_MAKERS: dict[str, Callable[[Layer, Weights], nn.Module]] = {"Convolution": _convolution, "PReLU": _prelu}
"""Layers with weights."""

_FUNCTIONS: dict[str, Callable[[Layer, list[Tensor]], Tensor]] = {
    "Input": lambda layer, read: read[0],
    "Split": lambda layer, read: read[0],
    "Concat": lambda layer, read: torch.cat(read, 1),
    "PixelShuffle": lambda layer, read: F.pixel_shuffle(read[0], int(layer.number(0, 1))),
    "Interp": _interpolate,
    "BinaryOp": _add,
    "Eltwise": _add,
}
"""Layers without weights."""
