"""Noise assignment when a batch is spread over several processes."""

from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from torch import Generator, Tensor

from privgen.noise_assignment.assign import (
    Labels,
    Method,
    assign_noise,
    check_batch,
    choose_method,
    label_groups,
    noise_permutation,
)


Scope = Literal["global", "local"]


def assign_noise_distributed(
    accelerator: Accelerator,
    x_0: Tensor,
    eps: Tensor,
    *,
    scope: Scope = "global",
    method: Method = "auto",
    candidates: int | None = None,
    labels: Labels | None = None,
    condition: Tensor | None = None,
    condition_weight: float = 1.0,
    generator: Generator | list[Generator] | None = None,
) -> Tensor:
    """`assign_noise` for one process of several, which all call it together.

    "global" permutes the noises of all processes among the images of all processes, and gives the same as
    `assign_noise` on the whole batch in one process. "knn" needs no communication.

    Args:
        accelerator: the processes.
        x_0: `(B, ...)`, this process's images, on its device; B is the same everywhere.
        eps: `(B, ...)`, this process's noise, which must not be that of another; or `(B, k, ...)` candidates.
        scope: "global", or "local" to assign within each process: no communication, but noise that lies less near.
        method: as in `assign_noise`; "auto" goes by the size over all processes when `scope` is "global".
        candidates: as in `assign_noise`.
        labels: this process's B classes.
        condition: `(B, ...)`, this process's embeddings.
        condition_weight: as in `assign_noise`.
        generator: as in `assign_noise`.

    Returns:
        This process's noise, of the shape of `x_0`.

    Raises:
        ValueError: as in `assign_noise`, then on every process; or the processes hold batches of different sizes.
    """
    if scope not in ("global", "local"):
        raise ValueError(f"expected scope 'global' or 'local', got {scope!r}")
    check_batch(x_0, eps)
    if scope == "global" and accelerator.num_processes > 1 and method != "knn" and eps.shape == x_0.shape:
        _check_sizes(accelerator, x_0)
        everyone = _gather_labels(accelerator, labels)
        images = accelerator.gather(x_0.detach())
        if method == "auto":
            method = choose_method(len(images) // len(label_groups(everyone, images)), images.device)
        if method != "knn":
            noises = accelerator.gather(eps)
            embeddings = None if condition is None else accelerator.gather(condition.detach())
            permutation = _permutation_of_main(
                accelerator, images, noises, method, everyone, embeddings, condition_weight
            )
            first = accelerator.process_index * len(x_0)
            return noises[permutation[first : first + len(x_0)]]
    return assign_noise(
        x_0,
        eps,
        method=method,
        candidates=candidates,
        labels=labels,
        condition=condition,
        condition_weight=condition_weight,
        generator=generator,
    )


def _permutation_of_main(
    accelerator: Accelerator,
    x_0: Tensor,
    eps: Tensor,
    method: Method,
    labels: Labels | None,
    condition: Tensor | None,
    condition_weight: float,
) -> Tensor:
    """Solved once, so that all follow one permutation even where their hardware rounds differently."""
    permutation, failure = torch.full((len(x_0),), -1, device=x_0.device), None
    if accelerator.is_main_process:
        try:
            permutation = noise_permutation(
                x_0, eps, method=method, labels=labels, condition=condition, condition_weight=condition_weight
            )
        except ValueError as error:
            failure = error
    # Also after a failure, for the other processes wait here.
    permutation = broadcast(permutation)
    if permutation[0] < 0:
        raise failure or ValueError("expected noise that the main process can assign, got its error")
    return permutation


def _check_sizes(accelerator: Accelerator, x_0: Tensor) -> None:
    sizes = accelerator.gather(torch.tensor([len(x_0)], device=x_0.device)).tolist()
    if len(set(sizes)) > 1:
        raise ValueError(f"expected the same batch size on every process, got {sizes}; let the loader drop the last")


def _gather_labels(accelerator: Accelerator, labels: Labels | None) -> Labels | None:
    if labels is None:
        return None
    if isinstance(labels, Tensor):
        return accelerator.gather(labels.to(accelerator.device))
    return gather_object(list(labels))
