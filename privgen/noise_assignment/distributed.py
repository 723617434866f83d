"""Noise assignment for a batch that is spread over several processes."""

from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from torch import Tensor

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
    labels: Labels | None = None,
    condition: Tensor | None = None,
    condition_weight: float = 1.0,
) -> Tensor:
    """Assign noise over all processes; every process calls it at the same time.

    With scope "global", the noises of all processes are permuted among the images of all processes. The result is that
    of `assign_noise` on the whole batch in one process. The method "knn" needs no other process, so you can also call
    `assign_noise` for it, which takes a generator and the number of candidates.

    Args:
        accelerator: the processes.
        x_0: this process's images, `(B, ...)` on its device; B is the same on every process.
        eps: this process's noise, `(B, ...)`, or candidates, `(B, k, ...)`; every process draws noise of its own.
        scope: "global"; or "local", which assigns within each process, without communication but with noise that is
            less near.
        method: see `assign_noise`; with scope "global", "auto" chooses by the size over all processes.
        labels: classes of this process's images, B of them.
        condition: embeddings of this process's images, `(B, ...)`.
        condition_weight: see `assign_noise`.

    Returns:
        This process's noise, of the shape of `x_0`.

    Raises:
        ValueError: as for `assign_noise`, then on every process; or the processes hold batches of different sizes.
    """
    if scope not in ("global", "local"):
        raise ValueError(f"expected scope 'global' or 'local', got {scope!r}")
    check_batch(x_0, eps)
    if scope == "global" and accelerator.num_processes > 1 and method != "knn" and eps.shape == x_0.shape:
        _check_sizes(accelerator, x_0)
        all_labels = _gather_labels(accelerator, labels)
        images = accelerator.gather(x_0.detach())
        if method == "auto":
            method = choose_method(len(images) // len(label_groups(all_labels, images)), images.device)
        if method != "knn":
            noises = accelerator.gather(eps)
            embeddings = None if condition is None else accelerator.gather(condition.detach())
            permutation = _shared_permutation(
                accelerator, images, noises, method, all_labels, embeddings, condition_weight
            )
            first = accelerator.process_index * len(x_0)
            return noises[permutation[first : first + len(x_0)]]
    return assign_noise(x_0, eps, method=method, labels=labels, condition=condition, condition_weight=condition_weight)


def _shared_permutation(
    accelerator: Accelerator,
    x_0: Tensor,
    eps: Tensor,
    method: Method,
    labels: Labels | None,
    condition: Tensor | None,
    condition_weight: float,
) -> Tensor:
    """The permutation of the main process, so that all use the same even if their hardware rounds differently."""
    permutation, failure = torch.full((len(x_0),), -1, device=x_0.device), None
    if accelerator.is_main_process:
        try:
            permutation = noise_permutation(
                x_0, eps, method=method, labels=labels, condition=condition, condition_weight=condition_weight
            )
        except ValueError as error:
            failure = error
    # After a failure too, since the other processes wait here.
    permutation = broadcast(permutation)
    if permutation[0] < 0:
        raise failure or ValueError("the main process could not assign the noise; its error says why")
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
