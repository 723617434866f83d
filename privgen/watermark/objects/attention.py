"""Find the objects of an image while it is generated: where it attends to the words that name them.

"Your Text Encoder Can Be An Object-Level Watermarking Controller" (arXiv 2503.11945) takes the masks of objects from
the cross-attention of their words. Here the probabilities are computed beside the model's own attention, from the same
inputs. No processor is replaced, so the image stays the same bit for bit.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

from privgen.errors import UsageError
from privgen.models.family import Family, attention_layers, family_of


THRESHOLD = 0.25
"""An object is where the attention to its word is at least this fraction of its maximum."""
LATE = 0.8
"""Attention is recorded from this fraction of the steps on, and in an eighth of them."""
FINEST = 48
"""Side of the finest attention maps that are used if there are coarser ones: those of larger layers are noise."""

_FINER = 1.5  # weight of the finer of two resolutions, over that of the coarser one
_COPY = 64  # short side of the copy of an image in which a guided filter is fitted
_WINDOW = 1 / 8  # radius of its windows, as a fraction of the short side
_SMOOTHNESS = 1e-3  # variance of colours below which its windows are even

Grid = tuple[int, int]


class WordAttention:
    """How much each place of an image attends to words, as `recording` collects it.

    Args:
        images: how many images are generated at a time.
        words: how many words are looked for.
    """

    def __init__(self, images: int, words: int) -> None:
        self.images, self.words = images, words
        self.paused = False  # set while the denoiser is asked for something else than the image
        self._sums: dict[Grid, Tensor] = {}
        self._counts: dict[Grid, int] = {}

    def add(self, grid: Grid, probabilities: Tensor) -> None:
        """Add what one layer attends to: (images, words, height * width of the grid)."""
        maps = probabilities.unflatten(2, grid)
        self._sums[grid] = self._sums.get(grid, torch.zeros_like(maps)) + maps
        self._counts[grid] = self._counts.get(grid, 0) + 1

    def clear(self) -> None:
        """Forget what was collected."""
        self._sums.clear()
        self._counts.clear()

    def maps(self) -> Tensor:
        """Return the attention to each word: a mean of the two finest useful resolutions, divided by its maximum.

        Returns:
            (images, words, height, width) float32 in [0, 1], on the denoiser's device.

        Raises:
            UsageError: no late step has run.
        """
        if not self._sums:
            raise UsageError("No late step of the pipeline has run, so nothing says where objects are; give masks.")
        grids = sorted(self._sums, key=lambda grid: grid[0] * grid[1])
        useful = sum((grid[0] * grid[1]) ** 0.5 <= FINEST for grid in grids)
        chosen = grids[max(useful - 2, 0) : max(useful, 2)]
        means = [_resized(self._sums[grid] / self._counts[grid], chosen[-1]) for grid in chosen]
        mean = means[0].lerp(means[-1], _FINER / (1 + _FINER))
        return mean / mean.amax((2, 3), keepdim=True).clamp(min=torch.finfo(mean.dtype).tiny)

    def masks(self, images: Tensor, *, threshold: float = THRESHOLD) -> Tensor:
        """Return where each word's object is. Where objects overlap, that of the larger attention is there alone.

        Attention is coarse, so its edges are moved to those of the images; see `follow_edges`. To be compared, the
        attention to each word is divided by its mean over the image, so that a word to which all places attend a
        little does not take what belongs to another.

        Args:
            images: (images, 3, height, width) in [0, 1], as they were generated.
            threshold: fraction of the maximum from which on the object is there.

        Returns:
            (images, words, height, width) float32 of 0 and 1, on the images' device.

        Raises:
            UsageError: no late step has run.
        """
        maps = self.maps().to(images.device)
        attention = follow_edges(maps, images.float())
        compared = attention / maps.mean((2, 3), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)
        owners = compared.argmax(1, keepdim=True) == torch.arange(self.words, device=attention.device)[:, None, None]
        return ((attention >= threshold) & owners).float()


def follow_edges(maps: Tensor, images: Tensor) -> Tensor:
    """Return coarse maps at the size of images, with the images' edges: a guided filter.

    "Guided Image Filtering" (He, Sun, Tang; TPAMI 2013): in each window a map is taken for a linear function of the
    image's three colours. The functions are found in a small copy, and applied to the image itself ("Fast Guided
    Filter", arXiv 1505.00996).

    Args:
        maps: (B, K, h, w).
        images: (B, 3, H, W) in [0, 1].

    Returns:
        (B, K, H, W) float32.
    """
    height, width = images.shape[-2:]
    shrunk = min(1.0, _COPY / min(height, width))
    size = (max(1, round(height * shrunk)), max(1, round(width * shrunk)))
    guide, coarse = interpolate(images, size=size, mode="area"), _resized(maps.float(), size)
    radius = max(1, round(min(size) * _WINDOW))
    mean_guide, mean_map = _mean_around(guide, radius), _mean_around(coarse, radius)
    products = (guide[:, :, None] * guide[:, None]).flatten(1, 2)
    variance = _mean_around(products, radius).unflatten(1, (3, 3)) - mean_guide[:, :, None] * mean_guide[:, None]
    products = (coarse[:, :, None] * guide[:, None]).flatten(1, 2)
    covariance = _mean_around(products, radius).unflatten(1, (-1, 3)) - mean_map[:, :, None] * mean_guide[:, None]
    system = variance.permute(0, 3, 4, 1, 2) + _SMOOTHNESS * torch.eye(3, device=images.device)  # (B, h, w, 3, 3)
    slopes = torch.linalg.solve(system, covariance.permute(0, 3, 4, 2, 1)).permute(0, 4, 3, 1, 2)  # (B, K, 3, h, w)
    offsets = mean_map - (slopes * mean_guide[:, None]).sum(2)
    slopes = _resized(_mean_around(slopes.flatten(1, 2), radius), (height, width)).unflatten(1, (-1, 3))
    offsets = _resized(_mean_around(offsets, radius), (height, width))
    return (slopes * images[:, None]).sum(2) + offsets


@contextmanager
def recording(pipe: Any, places: Sequence[Sequence[Tensor]]) -> Iterator[WordAttention]:
    """Record, in a few late steps, how much a pipeline's images attend to words, while the block lasts.

    Each call of the pipeline starts anew, so that the result is about the last one. Images are bit for bit the same as
    without the block.

    Example:
        >>> from privgen.hub import load_pipeline
        >>> from privgen.watermark.objects.words import prompts_of_call, word_places
        >>> pipe, prompt = load_pipeline("mini"), "a cat and a pineapple on a blue background"
        >>> places = word_places(pipe, prompts_of_call(pipe, {"prompt": prompt}), ["cat", "pineapple"])
        >>> with recording(pipe, places) as attention:
        ...     images = pipe(prompt, num_inference_steps=4, output_type="pt").images
        >>> attention.masks(images).shape
        torch.Size([1, 2, 128, 128])

    Args:
        pipe: a text-to-image pipeline of a family of `privgen.models.family`, with or without guidance.
        places: of the words, for each image that one call generates; see `word_places`.

    Yields:
        What is recorded.

    Raises:
        UsageError: the pipeline belongs to no known family.
    """
    attention = WordAttention(len(places), len(places[0]))
    recorder = _Recorder(pipe, places, attention)
    layers, denoiser = attention_layers(pipe).values(), getattr(pipe, recorder.family.denoiser)
    handles = [layer.register_forward_pre_hook(recorder.before_layer, with_kwargs=True) for layer in layers]
    handles.append(denoiser.register_forward_pre_hook(recorder.before_step, with_kwargs=True))
    try:
        yield attention
    finally:
        for handle in handles:
            handle.remove()


class _Recorder:
    """The hooks of `recording`."""

    def __init__(self, pipe: Any, places: Sequence[Sequence[Tensor]], attention: WordAttention) -> None:
        self.pipe, self.places, self.attention = pipe, places, attention
        self.family: Family = family_of(pipe)
        self.step: int | None = None
        self.recorded = 0
        self.active = False
        self.grid: Grid = (1, 1)
        self.text_length = 0

    def before_step(self, denoiser: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Decide whether this call of the denoiser is recorded: the first one of a late step, with the prompt."""
        if self.attention.paused:
            self.active = False
            return
        given = inspect.signature(denoiser.forward).bind_partial(*args, **kwargs).arguments
        timesteps = self.pipe.scheduler.timesteps.float().cpu()
        now = float(torch.as_tensor(given["timestep"]).flatten()[0]) * (1000 if self.family.name == "flux" else 1)
        step = int((timesteps - now).abs().argmin())
        if self.step is not None and step < self.step:
            self.recorded = 0
            self.attention.clear()
        late = step >= int(LATE * len(timesteps)) and self.recorded < max(1, len(timesteps) // 8)
        self.active, self.step = late and step != self.step, step
        if not self.active:
            return
        self.recorded += 1
        self.text_length = given["encoder_hidden_states"].shape[1]
        if "img_ids" in given:  # packed latents lie in a row, and say where they belong
            self.grid = tuple(int(side) + 1 for side in given["img_ids"].reshape(-1, 3)[:, 1:].amax(0))  # type: ignore[assignment]
        else:
            self.grid = tuple(given["sample" if "sample" in given else "hidden_states"].shape[-2:])

    @torch.no_grad()
    def before_layer(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Compute the attention probabilities of a layer from its inputs, and add those of the words."""
        if not self.active:
            return
        image = kwargs.get("hidden_states", args[0] if args else None)
        text = kwargs.get("encoder_hidden_states", args[1] if len(args) > 1 else None)
        text = text[0] if isinstance(text, tuple) else text  # image prompts follow the text
        # Guidance puts the images without the prompt first.
        image, text = (None if x is None else x[-self.attention.images :] for x in (image, text))
        queries, keys = self._queries_and_keys(layer, image, text, kwargs.get("image_rotary_emb"))
        scale = getattr(layer, "scale", queries.shape[-1] ** -0.5)
        logits = scale * torch.einsum("bqhd,bkhd->bhqk", queries.float(), keys.float())
        probabilities = logits.softmax(-1).mean(1)  # (images, places of the image, tokens of the text)
        if (last := max(int(words.max()) for row in self.places for words in row)) >= probabilities.shape[2]:
            raise UsageError(
                f"A word is token {last + 1} of the prompt, and the pipeline reads {probabilities.shape[2]}; "
                "shorten the prompt."
            )
        found = [
            torch.stack([one[:, words.to(one.device)].sum(1) for words in row])
            for one, row in zip(probabilities, self.places, strict=True)
        ]
        self.attention.add(_grid_of(queries.shape[1], self.grid), torch.stack(found))

    def _queries_and_keys(self, layer: Any, image: Any, text: Any, rotary: Any) -> tuple[Tensor, Tensor]:
        """Queries of the image and keys of the text, both (images, places, heads, numbers)."""
        if text is None:  # a layer of FLUX in which text and image lie in one row
            text, image = image[:, : self.text_length], image[:, self.text_length :]
            keys, norm = layer.to_k(text), layer.norm_k
        elif self.family.attention == "joint":
            keys, norm = layer.add_k_proj(text), layer.norm_added_k
        else:
            text = layer.norm_encoder_hidden_states(text) if layer.norm_cross else text
            keys, norm = layer.to_k(text), layer.norm_k
        queries, keys = (x.unflatten(-1, (layer.heads, -1)) for x in (layer.to_q(image), keys))
        queries = queries if layer.norm_q is None else layer.norm_q(queries)
        keys = keys if norm is None else norm(keys)
        if rotary is not None:
            length = keys.shape[1]
            queries = apply_rotary_emb(queries, tuple(part[length:] for part in rotary), sequence_dim=1)
            keys = apply_rotary_emb(keys, tuple(part[:length] for part in rotary), sequence_dim=1)
        return queries, keys


def _grid_of(places: int, finest: Grid) -> Grid:
    """Height and width of a layer with so many places, which is the finest one halved several times."""
    height, width = finest
    while height * width > places:
        height, width = -(-height // 2), -(-width // 2)
    if height * width != places:
        raise UsageError(f"A layer has {places} places, which are no part of a grid of {finest}; give masks instead.")
    return height, width


def _resized(maps: Tensor, size: Grid) -> Tensor:
    return interpolate(maps, size=size, mode="bilinear", align_corners=False)


def _mean_around(planes: Tensor, radius: int) -> Tensor:
    """The mean of the square around each pixel; beyond the edge, planes are taken to go on as a mirror image."""
    radius = min(radius, min(planes.shape[-2:]) - 1)
    return avg_pool2d(pad(planes, (radius,) * 4, mode="reflect"), 2 * radius + 1, 1)
