"""The assignment problem itself: which column each row of a square cost matrix takes, once each."""

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


# Below this size the shortest augmenting paths are found sooner than the potentials that would shorten them.
_WARM_START_FROM = 256


@dataclass(frozen=True)
class Matching:
    """A one-to-one matching and how far it can be from the best one.

    Args:
        columns: `(N,)`, int64: row i takes column `columns[i]`.
        prices: `(N,)`: the dual variables of the columns, which certify `gap`.
        gap: total cost minus a lower bound of the least total cost, in units of the cost; 0 is optimal.
        rounds: how many rounds of bidding it took.
    """

    columns: Tensor
    prices: Tensor
    gap: float
    rounds: int


def linear_matching(cost: Tensor) -> Tensor:
    """The matching of least total cost, exactly, by shortest augmenting paths on the CPU.

    SciPy's solver (Crouse 2016, doi 10.1109/TAES.2016.140952) starts from zero potentials. Potentials from a
    few Sinkhorn iterations are subtracted first: a constant per column changes no optimum, and the paths get short.

    Args:
        cost: `(N, N)`, floating, finite, on any device.

    Returns:
        `(N,)`, int64, on the device of `cost`: row i takes column `columns[i]`.
    """
    values = cost.cpu().double()
    # Some rows and columns tell the scale well enough.
    every = max(1, len(cost) // 128)
    if len(cost) >= _WARM_START_FROM and (scale := spread(cost[::every, ::every])) > 0:
        values = values - sinkhorn_potentials(cost, temperature=0.1 * scale, iterations=10).cpu()
    _, columns = linear_sum_assignment(values.numpy())
    return torch.from_numpy(columns).to(cost.device)


def auction_matching(cost: Tensor, *, tolerance: float = 0.01, max_rounds: int = 20_000) -> Matching:
    """A matching within a known gap of the least total cost, on the device of `cost`.

    Forward auction with epsilon scaling and simultaneous bids (Bertsekas 1988, doi 10.1007/BF02186476): a row bids
    what its best column is worth to it above its second best, plus epsilon; the highest bid takes the column. When all
    rows hold one, the total is within N epsilon of the optimum. Prices start from Sinkhorn potentials.

    Args:
        cost: `(N, N)`, floating, finite, on any device.
        tolerance: the last epsilon, in multiples of `spread(cost)`, above 0: the bound on the mean gap per row. Of
            integers it makes the matching exact when `tolerance * spread(cost) < 1 / N`.
        max_rounds: after so many rounds of bidding, rows that still hold nothing take what is left, and `gap` says
            what that costs.

    Returns:
        The matching, with its gap.

    Raises:
        ValueError: `tolerance` is not above 0.
    """
    if not tolerance > 0:
        raise ValueError(f"expected tolerance above 0, got {tolerance}")
    scale = spread(cost)
    if scale == 0:
        columns = torch.arange(len(cost), device=cost.device)
        return Matching(columns, torch.zeros_like(cost[0]), 0.0, 0)
    # A bid that rounds to no bid would be repeated for ever.
    smallest = 16 * torch.finfo(cost.dtype).eps * float(cost.abs().max())
    prices = -sinkhorn_potentials(cost, temperature=0.05 * scale, iterations=30)
    rounds = 0
    for epsilon in _epsilons(tolerance):
        columns, prices, used = _bid(cost, prices, max(epsilon * scale, smallest), max_rounds - rounds)
        rounds += used
    return Matching(columns, prices, duality_gap(cost, columns, prices), rounds)


def duality_gap(cost: Tensor, columns: Tensor, prices: Tensor) -> float:
    """How much more a matching costs than the best one, at most.

    Weak duality of the assignment problem (Bertsekas 1988): for any prices p, no matching costs less than
    `sum_i min_j (cost_ij + p_j) - sum_j p_j`. Summed in float64, except on devices without it.

    Args:
        cost: `(N, N)`, floating.
        columns: `(N,)`, int64, a permutation: row i takes column `columns[i]`.
        prices: `(N,)`, any real numbers; the better the prices, the tighter the bound.

    Returns:
        The gap of the total, in units of the cost, never below 0.
    """
    precise = torch.float32 if cost.device.type == "mps" else torch.float64
    total = cost.gather(1, columns[:, None]).to(precise).sum()
    least = (cost + prices).amin(1).to(precise).sum() - prices.to(precise).sum()
    return max(0.0, float(total - least))


def spread(cost: Tensor) -> float:
    """The standard deviation of what a matching can change: the cost without its row and column means.

    Args:
        cost: `(N, N)`, floating.

    Returns:
        The standard deviation, in units of the cost; 0 for costs between which no matching can choose.
    """
    rows, columns = cost.mean(1, keepdim=True), cost.mean(0)
    varying = float((cost - rows - columns).std(correction=0))
    # Of rank one, as for equal images, the means take away everything but rounding.
    return varying if varying > 8 * torch.finfo(cost.dtype).eps * float(cost.abs().max()) else 0.0


def sinkhorn_potentials(cost: Tensor, *, temperature: float, iterations: int) -> Tensor:
    """Approximate dual potentials of the columns, by matrix scaling.

    Sinkhorn's iterations for optimal transport (Cuturi 2013, arXiv 1306.0895). Nothing here depends on
    their accuracy: the solvers are right from any finite start, and faster from a good one.

    Args:
        cost: `(N, N)`, floating.
        temperature: the entropic regularisation, in units of the cost, above 0.
        iterations: how many times rows and columns are scaled.

    Returns:
        `(N,)`, finite, in units of the cost; subtracted from the columns of `cost`, it evens them out.
    """
    kernel = ((cost.amin(1, keepdim=True) - cost) / temperature).exp_()
    columns = torch.ones_like(kernel[0])
    for _ in range(iterations):
        rows = 1 / (kernel @ columns)
        columns = 1 / (rows @ kernel).clamp_min(1e-30)
    return torch.nan_to_num(temperature * columns.log(), nan=0.0, posinf=0.0, neginf=0.0)


def _epsilons(tolerance: float) -> list[float]:
    epsilons = [tolerance]
    while epsilons[0] < 0.01:
        epsilons.insert(0, 5 * epsilons[0])
    return epsilons


def _bid(cost: Tensor, prices: Tensor, epsilon: float, max_rounds: int) -> tuple[Tensor, Tensor, int]:
    """Auctions every column: `(N,)` columns by row, `(N,)` prices, rounds."""
    held = torch.full_like(prices, -1, dtype=torch.int64)  # column by row
    owner, prices = held.clone(), prices.clone()  # row by column
    for used in range(max_rounds):
        bidders = (held < 0).nonzero().squeeze(1)
        if len(bidders) == 0:
            return held, prices, used
        taken, winners, bids = _best_bids(-cost[bidders] - prices, bidders, prices, epsilon)
        losers = owner[taken]
        held[losers[losers >= 0]] = -1
        held[winners], owner[taken], prices[taken] = taken, winners, bids
    held[held < 0] = (owner < 0).nonzero().squeeze(1)
    return held, prices, max_rounds


def _best_bids(profit: Tensor, bidders: Tensor, prices: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """The columns that got bids, the row that bid most for each, and how much; ties go to the last row."""
    (best, second), (wanted, _) = (part.unbind(1) for part in profit.topk(2, dim=1))
    bids = prices[wanted] + best - second + epsilon
    highest = torch.full_like(prices, -torch.inf).scatter_reduce(0, wanted, bids, "amax")
    row = torch.where(bids == highest[wanted], bidders, -1)
    winner = torch.full_like(prices, -1, dtype=torch.int64).scatter_reduce(0, wanted, row, "amax")
    taken = (winner >= 0).nonzero().squeeze(1)
    return taken, winner[taken], highest[taken]
