"""How processes divide their work; what they compute together is tested where it is used."""

import pytest

from privgen.evaluation.workers import Processes


def shares(count, items, costs=None):
    return [Processes(rank, count).share(items, costs) for rank in range(count)]


def test_without_costs_items_go_round():
    assert shares(2, "abcde") == [["a", "c", "e"], ["b", "d"]]


def test_the_dearest_item_stands_alone():
    assert shares(2, "abcd", [9, 2, 3, 3]) == [["a"], ["b", "c", "d"]]


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_every_item_has_one_process_and_keeps_its_order(count):
    costs = [5, 1, 1, 4, 4, 1, 3]
    parts = shares(count, range(7), costs)
    assert sorted(item for part in parts for item in part) == list(range(7))
    assert all(part == sorted(part) for part in parts)
    loads = [sum(costs[item] for item in part) for part in parts]
    assert max(loads) <= max(max(costs), 4 / 3 * sum(costs) / count), "within a third of an even share"
