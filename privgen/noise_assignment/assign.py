"""Immiscible noise assignment: give each image of a training batch noise that is near to it.

Immiscible Diffusion (arXiv 2406.12303) permutes the noises of a batch. Improved Immiscible Diffusion (arXiv
2505.18521) picks one of several noises for each image. Both papers choose by distance; here both choose by dot
product. For a permutation the choice is the same, since the norms add up to a constant. For a pick, the dot product
keeps the norm of the noise, which distance would shrink.
"""

from collections.abc import Hashable, Sequence
from typing import Literal

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Generator, Tensor

from privgen.noise_assignment.matching import auction_matching, linear_matching, spread


Method = Literal["auto", "linear", "knn", "auction"]
Labels = Tensor | Sequence[Hashable]

METHODS: tuple[Method, ...] = ("auto", "linear", "knn", "auction")
CANDIDATES = 4

LINEAR_TO = 4096
"""Most noises per image for which "auto" takes "linear" on the CPU."""
AUCTION_FROM = 2048
"""Fewest noises per image for which "auto" takes "auction" on another device."""
AUCTION_TO = 8192
"""Most noises per image for which "auto" takes a permutation on another device."""


def assign_noise(
    x_0: Tensor,
    eps: Tensor,
    *,
    method: Method = "auto",
    candidates: int | None = None,
    labels: Labels | None = None,
    condition: Tensor | None = None,
    condition_weight: float = 1.0,
    generator: Generator | list[Generator] | None = None,
) -> Tensor:
    """Assign to each image of a training batch noise that is near to it.

    Call it once per batch, after you draw the noise and before you add a noise offset or call `add_noise`. Use the
    noise that it returns for the target too. It serves noise prediction, v-prediction and flow matching alike.

    Example:
        >>> import torch
        >>> from privgen import assign_noise
        >>> generator = torch.Generator().manual_seed(0)
        >>> latents, noise = torch.randn(2, 64, 4, 8, 8, generator=generator)
        >>> assigned = assign_noise(latents, noise)
        >>> bool((latents - assigned).norm() < (latents - noise).norm())
        True

    Args:
        x_0: clean images or latents, floating, `(B, ...)` with any shape after the batch.
        eps: standard normal noise of the shape of `x_0`, or k candidates for each image, `(B, k, ...)`.
        method: how noise is assigned. "linear" permutes the noises of the batch to the exact minimum of the summed
            squared distances (arXiv 2406.12303). "auction" does the same on the device, to within 1 % of a standard
            deviation of the cost per image. "knn" takes the best of k noises for each image (arXiv 2505.18521); it
            draws k - 1 more unless `eps` holds them. "auto" takes what `choose_method` chooses for the batch.
        candidates: k, at least 1; by default 4, or as many as `eps` holds.
        labels: a class for each image: a tensor of integers, or hashable values such as captions. Noise is permuted
            within each class, which keeps the noise of each class normal (arXiv 2503.10636). "knn" needs no labels
            and no conditions, since it gives no image the noise of another.
        condition: embeddings, `(B, ...)`. A pair of image and noise costs more by the cosine distance between the
            embedding of that image and of the image that the noise was drawn for (C2OT, arXiv 2503.10636).
        condition_weight: weight of that distance, at least 0, in standard deviations of the cost; so it means the same
            for images of every size.
        generator: one for all candidates of "knn", or one for each image, on the CPU or on the device; None is
            PyTorch's global generator.

    Returns:
        Noise of the shape of `x_0`, with the dtype and device of `eps`. "linear" and "auction" return the rows of
        `eps`, each once and unchanged.

    Raises:
        ValueError: shapes, devices or values do not fit, or `x_0`, `eps` or `condition` hold NaN or infinity.
    """
    if method not in METHODS:
        raise ValueError(f"expected method to be one of {', '.join(METHODS)}, got {method!r}")
    check_batch(x_0, eps)
    if method == "auto":
        noises = len(x_0) // len(label_groups(labels, x_0))
        method = choose_method(noises, x_0.device) if eps.shape == x_0.shape else "knn"
    if method == "knn":
        return _nearest(x_0, eps, _count(candidates, x_0, eps), generator)
    permutation = noise_permutation(
        x_0, eps, method=method, labels=labels, condition=condition, condition_weight=condition_weight
    )
    return eps[permutation]


def noise_permutation(
    x_0: Tensor,
    eps: Tensor,
    *,
    method: Method = "linear",
    labels: Labels | None = None,
    condition: Tensor | None = None,
    condition_weight: float = 1.0,
) -> Tensor:
    """The permutation that assigns noise to images; see `assign_noise` for the arguments.

    Args:
        x_0: `(B, ...)`, floating.
        eps: `(B, ...)`, floating.
        method: "linear" or "auction".
        labels: a class for each image; noise stays within its class.
        condition: `(B, ...)`, embeddings whose cosine distance is added to the cost.
        condition_weight: weight of that distance, in standard deviations of the cost.

    Returns:
        `(B,)`, int64: image i gets `eps[permutation[i]]`.

    Raises:
        ValueError: shapes, devices or values do not fit, or the inputs hold NaN or infinity.
    """
    check_batch(x_0, eps)
    if method not in ("linear", "auction"):
        raise ValueError(f"expected method 'linear' or 'auction' for a permutation, got {method!r}")
    if eps.shape != x_0.shape:
        raise ValueError(f"expected one noise per image for {method!r}, got eps of shape {tuple(eps.shape)}")
    if condition is not None:
        _check_condition(condition, condition_weight, x_0)
    with torch.no_grad(), torch.autocast(x_0.device.type, enabled=False):
        if labels is None:
            return _permute(x_0, eps, method, condition, condition_weight)
        _check_products(_dot(x_0, eps), x_0, eps)
        permutation = torch.arange(len(x_0), device=x_0.device)
        for rows in label_groups(labels, x_0):
            if len(rows) == 1:
                continue
            own = None if condition is None else condition[rows]
            permutation[rows] = rows[_permute(x_0[rows], eps[rows], method, own, condition_weight)]
    return permutation


def choose_method(noises: int, device: torch.device | str = "cpu") -> Method:
    """The method that "auto" takes for a batch.

    It is a permutation, which keeps the noise of the batch as it was drawn, unless the batch is so large that finding
    one takes too long; the time grows with the cube of the size. In a small batch no noise is near, so a permutation
    does next to nothing. "knn" would do more there, but it made most trainings worse.

    Args:
        noises: how many noises an image can get: the batch size over all processes, divided by the number of labels.
        device: where the batch is.

    Returns:
        "linear", "auction" or "knn".
    """
    on_cpu = torch.device(device).type == "cpu"
    if noises > (LINEAR_TO if on_cpu else AUCTION_TO):
        return "knn"
    return "linear" if on_cpu or noises < AUCTION_FROM else "auction"


def check_batch(x_0: Tensor, eps: Tensor) -> None:
    """Raise a `ValueError` unless `eps` can be noise for `x_0`, `(B, ...)`: of its shape, or `(B, k, ...)`."""
    for name, tensor in (("x_0", x_0), ("eps", eps)):
        if not tensor.is_floating_point():
            raise ValueError(f"expected {name} of a floating dtype, got {tensor.dtype}")
    if x_0.ndim < 2 or x_0.numel() == 0:
        raise ValueError(f"expected x_0 of shape (B, ...) with at least one value, got {tuple(x_0.shape)}")
    holds_candidates = eps.numel() > 0 and eps.ndim == x_0.ndim + 1 and eps[:, 0].shape == x_0.shape
    if eps.shape != x_0.shape and not holds_candidates:
        raise ValueError(
            f"expected eps of shape {tuple(x_0.shape)} as x_0, or of shape {(len(x_0), 'k', *x_0.shape[1:])} "
            f"with k candidates per image, got {tuple(eps.shape)}"
        )
    if eps.device != x_0.device:
        raise ValueError(f"expected eps on {x_0.device} as x_0, got {eps.device}")


def label_groups(labels: Labels | None, x_0: Tensor) -> list[Tensor]:
    """The ascending rows of each class: one `(n,)` int64 tensor per class, on the device of `x_0`."""
    if labels is None:
        return [torch.arange(len(x_0), device=x_0.device)]
    if isinstance(labels, Tensor) and (labels.is_floating_point() or labels.is_complex()):
        raise ValueError(f"expected labels of an integer dtype, got {labels.dtype}")
    values = labels.tolist() if isinstance(labels, Tensor) else labels
    if isinstance(values, str) or len(values) != len(x_0) or (isinstance(labels, Tensor) and labels.ndim != 1):
        got = tuple(labels.shape) if isinstance(labels, Tensor) else f"{values!r:.60}"
        raise ValueError(f"expected {len(x_0)} labels, one per image, got {got}")
    rows: dict[Hashable, list[int]] = {}
    for row, value in enumerate(values):
        rows.setdefault(value, []).append(row)
    return [torch.tensor(group, device=x_0.device) for group in rows.values()]


def _check_condition(condition: Tensor, weight: float, x_0: Tensor) -> None:
    if condition.ndim < 2 or len(condition) != len(x_0):
        raise ValueError(f"expected condition of shape ({len(x_0)}, ...), got {tuple(condition.shape)}")
    if not weight >= 0:
        raise ValueError(f"expected condition_weight of at least 0, got {weight}")
    _check_finite("condition", condition)


def _check_finite(name: str, tensor: Tensor) -> None:
    bad = (~tensor.isfinite()).flatten(1).any(1).nonzero().squeeze(1).tolist()
    if bad:
        raise ValueError(f"expected finite {name}, got NaN or infinity in {len(bad)} of {len(tensor)} rows: {bad[:8]}")


def _check_products(products: Tensor, x_0: Tensor, eps: Tensor) -> None:
    # NaN or infinity in an input makes its products NaN or infinite.
    if not products.isfinite().all():
        _check_finite("x_0", x_0)
        _check_finite("eps", eps)
        raise ValueError(f"expected x_0 and eps whose products fit {products.dtype}, got an overflow")


def _permute(x_0: Tensor, eps: Tensor, method: Method, condition: Tensor | None, weight: float) -> Tensor:
    cost = _cost(x_0, eps, condition, weight)
    return linear_matching(cost) if method == "linear" else auction_matching(cost).columns


def _cost(x_0: Tensor, eps: Tensor, condition: Tensor | None, weight: float) -> Tensor:
    """`(B, B)`: half the squared distance up to constants per row and column, plus the penalty of the condition."""
    x, e = _flat(x_0), _flat(eps)
    # The mean image adds the same cost to every matching. Without it, the differences keep more digits.
    x = (x.mean(0) - x).to(torch.promote_types(x.dtype, e.dtype))
    cost = x @ e.to(x.dtype).T
    _check_products(cost, x_0, eps)
    if condition is not None and weight > 0:
        direction = torch.nn.functional.normalize(_flat(condition), dim=1).to(cost.dtype)
        cost -= weight * spread(cost) * (direction @ direction.T)
    return cost


def _count(candidates: int | None, x_0: Tensor, eps: Tensor) -> int:
    held = None if eps.shape == x_0.shape else eps.shape[1]
    if candidates is not None and candidates < 1:
        raise ValueError(f"expected candidates of at least 1, got {candidates}")
    if held is not None and candidates not in (None, held):
        raise ValueError(f"expected candidates={held} as eps holds, got {candidates}")
    return held or candidates or CANDIDATES


def _nearest(x_0: Tensor, eps: Tensor, count: int, generator: Generator | list[Generator] | None) -> Tensor:
    """For each image, the one of `count` noises with the highest dot product; holds two noises at a time."""
    if isinstance(generator, list) and len(generator) != len(x_0):
        raise ValueError(f"expected {len(x_0)} generators, one per image, got {len(generator)}")
    drawn = eps.shape == x_0.shape
    best = (eps if drawn else eps[:, 0]).clone()
    scores = _dot(x_0, best)
    all_scores = [scores]
    for k in range(1, count):
        noise = randn_tensor(best.shape, generator, eps.device, eps.dtype) if drawn else eps[:, k]
        all_scores.append(_dot(x_0, noise))
        better = all_scores[-1] > scores
        best = torch.where(better.view(-1, *[1] * (x_0.ndim - 1)), noise, best)
        scores = scores.maximum(all_scores[-1])
    _check_products(torch.stack(all_scores), x_0, eps)
    return best


def _dot(x_0: Tensor, eps: Tensor) -> Tensor:
    with torch.no_grad():
        return (_flat(x_0) * _flat(eps)).sum(1)


def _flat(tensor: Tensor) -> Tensor:
    """`(B, D)` in at least float32, since sums in half precision would pick the wrong noise."""
    return tensor.flatten(1).to(torch.promote_types(tensor.dtype, torch.float32))
