"""Immiscible noise assignment: give every image of a batch the noise that lies nearest to it.

Immiscible Diffusion (arXiv 2406.12303) permutes the noises of a batch, Improved Immiscible Diffusion (arXiv
2505.18521) picks one of several noises for every image. Both choose by distance, here both choose by dot product: for
a permutation that is the same choice, as the norms add up to a constant; for a pick it keeps the norm of the noise.
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

# What "auto" goes by; docs/results/noise-assignment.md shows the measurements.
LINEAR_TO = 4096
AUCTION_FROM = 2048
AUCTION_TO = 8192


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
    """Chooses for every image of a batch a noise that lies near it.

    In a training loop: `noise = assign_noise(latents, noise)`, once per batch, after the noise is drawn and before a
    noise offset or `add_noise`. The returned noise is also the target's. The same call serves epsilon, v and
    flow-matching training.

    Example:
        >>> import torch
        >>> from privgen import assign_noise
        >>> latents = torch.randn(16, 4, 32, 32)
        >>> noise = assign_noise(latents, torch.randn_like(latents))
        >>> noise.shape
        torch.Size([16, 4, 32, 32])

    Args:
        x_0: `(B, ...)`, clean images or latents, floating, any shape after the batch.
        eps: `(B, ...)`, standard normal noise of the shape of `x_0`; or `(B, k, ...)`, k candidates for every image.
        method: "linear" permutes the batch's noises to the least sum of squared distances, exactly (arXiv
            2406.12303); "auction" does so on the device, to within 1 % of a standard deviation of the
            cost; "knn" takes for every image the best of k noises (arXiv 2505.18521), drawing k - 1 more unless
            `eps` holds them; "auto" takes what `choose_method` says for the size.
        candidates: k, at least 1; None is 4, or what `eps` holds.
        labels: B classes (a tensor of integers, or any hashable values such as captions). Noise is permuted within
            a class only, which keeps each class's noise normal (arXiv 2503.10636). "knn" mixes no images, so that
            neither labels nor conditions change it.
        condition: `(B, ...)`, embeddings. A pair costs more by the cosine distance between the embedding of the image
            and that of the image that the noise was drawn for (C2OT, arXiv 2503.10636).
        condition_weight: the weight of that distance, at least 0, in standard deviations of the cost, so that it means
            the same for every size of image.
        generator: what "knn" draws from: one, or one per image, on the CPU or on the device; None is PyTorch's own.

    Returns:
        Noise of the shape of `x_0`, with the dtype and device of `eps`. Of "linear" and "auction" it has the rows of
        `eps`, each once, bit by bit.

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
    """Which noise every image gets; `assign_noise` says what the arguments mean.

    Args:
        x_0: `(B, ...)`, floating.
        eps: `(B, ...)`, floating.
        method: "linear" or "auction".
        labels: B classes that noise does not leave.
        condition: `(B, ...)`, embeddings whose cosine distance is added to the cost.
        condition_weight: the weight of that distance, in standard deviations of the cost.

    Returns:
        `(B,)`, int64, a permutation: image i gets `eps[permutation[i]]`.

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
    """What "auto" does with a batch.

    A permutation, which keeps the batch's noise as it was drawn, as long as one is found in good time: the exact one
    grows with the cube of the size. Among few noises none is near, and it does next to nothing; picking from noises
    drawn for the purpose does more, but most trainings were the worse for it (docs/results/noise-assignment.md).

    Args:
        noises: how many noises an image can get: the batch size, over all processes, divided by the number of labels.
        device: where the batch is.

    Returns:
        "knn", "linear" or "auction".
    """
    on_cpu = torch.device(device).type == "cpu"
    if noises > (LINEAR_TO if on_cpu else AUCTION_TO):
        return "knn"
    return "linear" if on_cpu or noises < AUCTION_FROM else "auction"


def check_batch(x_0: Tensor, eps: Tensor) -> None:
    """Raises a `ValueError` unless `eps` can be noise for `x_0` `(B, ...)`: of its shape, or `(B, k, ...)`."""
    for name, tensor in (("x_0", x_0), ("eps", eps)):
        if not tensor.is_floating_point():
            raise ValueError(f"expected {name} of a floating dtype, got {tensor.dtype}")
    if x_0.ndim < 2 or x_0.numel() == 0:
        raise ValueError(f"expected x_0 of shape (B, ...) with at least one value, got {tuple(x_0.shape)}")
    of_candidates = eps.numel() > 0 and eps.ndim == x_0.ndim + 1 and eps[:, 0].shape == x_0.shape
    if eps.shape != x_0.shape and not of_candidates:
        raise ValueError(
            f"expected eps of shape {tuple(x_0.shape)} as x_0, or of shape {(len(x_0), 'k', *x_0.shape[1:])} "
            f"with k candidates per image, got {tuple(eps.shape)}"
        )
    if eps.device != x_0.device:
        raise ValueError(f"expected eps on {x_0.device} as x_0, got {eps.device}")


def label_groups(labels: Labels | None, x_0: Tensor) -> list[Tensor]:
    """The rows of every class, ascending: one `(n,)` int64 tensor per class, on the device of `x_0`."""
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
    # Whatever is not finite makes its products so.
    if not products.isfinite().all():
        _check_finite("x_0", x_0)
        _check_finite("eps", eps)
        raise ValueError(f"expected x_0 and eps whose products fit {products.dtype}, got an overflow")


def _permute(x_0: Tensor, eps: Tensor, method: Method, condition: Tensor | None, weight: float) -> Tensor:
    cost = _cost(x_0, eps, condition, weight)
    return linear_matching(cost) if method == "linear" else auction_matching(cost).columns


def _cost(x_0: Tensor, eps: Tensor, condition: Tensor | None, weight: float) -> Tensor:
    """`(B, B)`: half the squared distance, up to constants per row and column, plus the condition's penalty."""
    x, e = _flat(x_0), _flat(eps)
    # The mean image costs every matching the same, and would take digits from what differs.
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
    """The noise of the highest dot product among `count` for every image, holding two at a time."""
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
    """`(B, D)`, in float32 or better: in half precision the sums would pick the wrong noise."""
    return tensor.flatten(1).to(_precise(tensor))


def _precise(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
