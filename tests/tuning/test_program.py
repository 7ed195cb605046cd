"""The dynamic program over several tables at once, against enumeration."""

from itertools import product

import numpy as np
import pytest

from kvtuner_core.tuning import program
from kvtuner_core.tuning.program import least_sums


def _drawn(seed, *, tables, ties=False):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 5, 5)
    shifts = [rng.integers(0, 7, size) * (3 if seed % 2 else 1) for size in sizes]
    shapes = [(tables, size) for size in sizes]
    losses = [rng.integers(0, 4, shape).astype(float) if ties else rng.lognormal(size=shape) for shape in shapes]
    return [row - row.min() for row in shifts], losses


def _by_hand(shifts, losses, table, reach):
    least = {}
    for options in product(*(range(len(row)) for row in shifts)):
        cost = sum(int(row[index]) for row, index in zip(shifts, options, strict=True))
        loss = 0.0
        for row, index in zip(losses, options, strict=True):
            loss += row[table, index]
        if cost <= reach and loss < least.get(cost, np.inf):
            least[cost] = loss
    front = []
    for cost in sorted(least):
        if not front or least[cost] < front[-1][1]:
            front.append((cost, least[cost]))
    return front


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_each_table_has_the_front_of_enumeration(seed, ties):
    shifts, losses = _drawn(seed, tables=4, ties=ties)
    whole = sum(int(row.max()) for row in shifts)
    for reach in (whole, whole // 2):
        found = least_sums(shifts, losses, reach=reach)
        assert found.tables.tolist() == sorted(found.tables.tolist())
        for table in range(4):
            own = found.tables == table
            assert list(zip(found.shifts[own], found.losses[own], strict=True)) == _by_hand(
                shifts, losses, table, reach
            )
        for row, options in enumerate(found.options):
            assert sum(int(one[index]) for one, index in zip(shifts, options, strict=True)) == found.shifts[row]
            chosen = [one[found.tables[row], index] for one, index in zip(losses, options, strict=True)]
            assert sum(chosen) == pytest.approx(found.losses[row])


@pytest.mark.parametrize("ties", [False, True])
def test_a_table_is_solved_alike_in_any_company_and_in_parts(monkeypatch, ties):
    shifts, losses = _drawn(8, tables=5, ties=ties)
    reach = sum(int(row.max()) for row in shifts)
    together = least_sums(shifts, losses, reach=reach)
    alone = [least_sums(shifts, [row[place : place + 1] for row in losses], reach=reach) for place in range(5)]
    monkeypatch.setattr(program, "_MOST_CELLS", 2 * (reach + 1) * len(shifts))
    parts = least_sums(shifts, losses, reach=reach)
    for name in ("options", "shifts", "losses"):
        expected = np.concatenate([getattr(one, name) for one in alone])
        assert np.array_equal(getattr(together, name), expected)
        assert np.array_equal(getattr(parts, name), expected)
    assert together.tables.tolist() == parts.tables.tolist()


def test_of_equal_options_the_first_is_chosen():
    found = least_sums([np.array([0, 2, 2, 4])], [np.array([[3.0, 1.0, 1.0, 1.0]])], reach=4)
    assert found.options.ravel().tolist() == [0, 1]
