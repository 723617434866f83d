"""The assignment problem: match the rows of a square cost matrix to its columns, one to one, at least total cost."""

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


# In smaller problems, finding good potentials takes longer than the time that they save.
_WARM_START_FROM = 256


@dataclass(frozen=True)
class Matching:
    """A one-to-one matching, with a bound on how much better the best one can be.

    Attributes:
        columns: `(N,)`, int64: row i takes column `columns[i]`.
        prices: `(N,)`, the dual variables of the columns, which prove `gap`.
        gap: total cost minus a lower bound of the least total cost, in units of the cost; 0 is optimal.
        rounds: how many rounds of bidding it took.
    """

    columns: Tensor
    prices: Tensor
    gap: float
    rounds: int


def linear_matching(cost: Tensor) -> Tensor:
    """The exact matching of least total cost, by shortest augmenting paths on the CPU.

    SciPy's solver (Crouse 2016, doi 10.1109/TAES.2016.140952) starts from potentials of zero. To make its paths
    shorter, potentials from a few Sinkhorn iterations are subtracted first. A constant per column does not change the
    optimum.

    Args:
        cost: `(N, N)`, floating, finite, on any device.

    Returns:
        `(N,)`, int64, on the device of `cost`: row i takes column `columns[i]`.
    """
    values = cost.cpu().double()
    # A sample of rows and columns is enough for the scale.
    every = max(1, len(cost) // 128)
    if len(cost) >= _WARM_START_FROM and (scale := spread(cost[::every, ::every])) > 0:
        values = values - sinkhorn_potentials(cost, temperature=0.1 * scale, iterations=10).cpu()
    _, columns = linear_sum_assignment(values.numpy())
    return torch.from_numpy(columns).to(cost.device)


def auction_matching(cost: Tensor, *, tolerance: float = 0.01, max_rounds: int = 20_000) -> Matching:
    """A matching within a known gap of the least total cost, found on the device of `cost`.

    Forward auction with epsilon scaling and simultaneous bids (Bertsekas 1988, doi 10.1007/BF02186476). Each row bids
    the difference in value between its best and its second-best column, plus epsilon; the highest bid takes the
    column. When every row holds a column, the total is within N epsilon of the optimum. Prices start from Sinkhorn
    potentials.

    Args:
        cost: `(N, N)`, floating, finite, on any device.
        tolerance: the last epsilon, above 0, in multiples of `spread(cost)`. It bounds the mean gap per row. For
            integer costs the matching is exact if `tolerance * spread(cost) < 1 / N`.
        max_rounds: most rounds of bidding. Rows that hold nothing then take the columns that are left, which raises
            `gap`.

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
    # A bid below the rounding error would change no price, and would be repeated forever.
    smallest = 16 * torch.finfo(cost.dtype).eps * float(cost.abs().max())
    prices = -sinkhorn_potentials(cost, temperature=0.05 * scale, iterations=30)
    rounds = 0
    for epsilon in _epsilons(tolerance):
        columns, prices, used = _bid(cost, prices, max(epsilon * scale, smallest), max_rounds - rounds)
        rounds += used
    return Matching(columns, prices, duality_gap(cost, columns, prices), rounds)


def duality_gap(cost: Tensor, columns: Tensor, prices: Tensor) -> float:
    """An upper bound on how much more a matching costs than the best one.

    By weak duality of the assignment problem (Bertsekas 1988), for any prices p no matching costs less than
    `sum_i min_j (cost_ij + p_j) - sum_j p_j`. Sums are in float64, except on devices without it.

    Args:
        cost: `(N, N)`, floating.
        columns: `(N,)`, int64, a permutation: row i takes column `columns[i]`.
        prices: `(N,)`, any real numbers; the better the prices, the tighter the bound.

    Returns:
        The gap of the total cost, in units of the cost, at least 0.
    """
    precise = torch.float32 if cost.device.type == "mps" else torch.float64
    total = cost.gather(1, columns[:, None]).to(precise).sum()
    least = (cost + prices).amin(1).to(precise).sum() - prices.to(precise).sum()
    return max(0.0, float(total - least))


def spread(cost: Tensor) -> float:
    """The standard deviation of the cost without its row and column means, which no matching can change.

    Args:
        cost: `(N, N)`, floating.

    Returns:
        The standard deviation, in units of the cost; 0 if all matchings cost the same.
    """
    rows, columns = cost.mean(1, keepdim=True), cost.mean(0)
    varying = float((cost - rows - columns).std(correction=0))
    # If all matchings cost the same, as for equal images, only rounding errors are left.
    return varying if varying > 8 * torch.finfo(cost.dtype).eps * float(cost.abs().max()) else 0.0


def sinkhorn_potentials(cost: Tensor, *, temperature: float, iterations: int) -> Tensor:
    """Approximate dual potentials of the columns, by matrix scaling.

    These are Sinkhorn's iterations for optimal transport (Cuturi 2013, arXiv 1306.0895). No result here depends on
    their accuracy: the solvers are correct from any finite start, and faster from a good one.

    Args:
        cost: `(N, N)`, floating.
        temperature: strength of the entropic regularisation, above 0, in units of the cost.
        iterations: how many times rows and columns are scaled.

    Returns:
        `(N,)`, finite, in units of the cost. Subtract it from the columns of `cost` to even them out.
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
    """Auction all columns. Returns the column of each row, `(N,)`, the prices, `(N,)`, and the number of rounds."""
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
    """The columns that got bids, the row with the highest bid for each, and that bid; ties go to the last row."""
    (best, second), (wanted, _) = (part.unbind(1) for part in profit.topk(2, dim=1))
    bids = prices[wanted] + best - second + epsilon
    highest = torch.full_like(prices, -torch.inf).scatter_reduce(0, wanted, bids, "amax")
    row = torch.where(bids == highest[wanted], bidders, -1)
    winner = torch.full_like(prices, -1, dtype=torch.int64).scatter_reduce(0, wanted, row, "amax")
    taken = (winner >= 0).nonzero().squeeze(1)
    return taken, winner[taken], highest[taken]
