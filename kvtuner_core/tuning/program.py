"""The dynamic program under the additive optimum: several tables of losses over the same costs, solved side by side.

A solver that looks around many points asks for the front of the same costs under many losses. Their
sums are followed in one array, so that a step of the program costs about as much for a dozen tables
as for one. Only the least losses are kept; which option gave them is worked out backwards, for the
points of the fronts alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_MOST_CELLS = 16_000_000
"""Sums that are kept at once; more tables than that are solved one part after the other."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fronts:
    """The non-dominated sums of every table, one table after the other, each from the least shift on.

    Attributes:
        tables: Number of the table ``[n]``.
        options: Index of the chosen option of each unit ``[n, units]``.
        shifts: Sum of the shifts ``[n]``.
        losses: Sum of the losses ``[n]``.
    """

    tables: Ints
    options: Ints
    shifts: Ints
    losses: Floats


def least_sums(shifts: Sequence[Ints], losses: Sequence[Floats], *, reach: int) -> Fronts:
    """The fronts of all tables; of options with equal sums the first is chosen, from the last unit on.

    Args:
        shifts: Per unit, the cost of each option above the unit's cheapest, in whole steps from 0.
        losses: Per unit, the loss of each option in every table ``[tables, options]``; finite.
        reach: Largest sum of shifts, at most that of the dearest options.
    """
    together = max(1, _MOST_CELLS // ((reach + 1) * len(shifts)))
    parts = [
        _fronts(shifts, [rows[start : start + together] for rows in losses], reach=reach)
        for start in range(0, len(losses[0]), together)
    ]
    return Fronts(
        tables=np.concatenate([part.tables + index * together for index, part in enumerate(parts)]),
        options=np.concatenate([part.options for part in parts]),
        shifts=np.concatenate([part.shifts for part in parts]),
        losses=np.concatenate([part.losses for part in parts]),
    )


def _fronts(shifts: Sequence[Ints], losses: Sequence[Floats], *, reach: int) -> Fronts:
    useful = _useful(shifts, losses)
    kept_shifts = [row[kept] for row, kept in zip(shifts, useful, strict=True)]
    # Without the options that nobody needs, sums are often multiples of more than one.
    step = math.gcd(*(shift for row in kept_shifts for shift in row.tolist())) or 1
    rows = [row // step for row in kept_shifts]
    values = [table[:, kept] for table, kept in zip(losses, useful, strict=True)]
    margin = max(int(row.max()) for row in rows)
    steps = _steps(rows, values, reach=reach // step, margin=margin)
    last = steps[-1][:, margin : steps[-1].shape[1] - margin]
    on_front = np.isfinite(last)
    on_front[:, 1:] &= last[:, 1:] < np.minimum.accumulate(last, axis=1)[:, :-1]
    tables, places = np.nonzero(on_front)
    options = np.empty((len(rows), len(places)), dtype=np.int64)
    at = places
    for unit in range(len(rows) - 1, -1, -1):
        before = steps[unit]
        # A row of places for each option, in one flat array whose margins hold no sum.
        origins = tables * before.shape[1] + margin + at - rows[unit][:, None]
        reached = before.ravel().take(origins) + values[unit].T.take(tables, axis=1)
        chosen = reached.argmin(axis=0)
        options[unit] = useful[unit].take(chosen)
        at = at - rows[unit].take(chosen)
    return Fronts(tables=tables, options=options.T, shifts=places * step, losses=last[tables, places])


def _steps(rows: Sequence[Ints], values: Sequence[Floats], *, reach: int, margin: int) -> list[Floats]:
    """Least losses of every sum before the first unit, and after each, between margins of infinities."""
    tables = len(values[0])
    least = np.full((tables, 2 * margin + 1), np.inf)
    least[:, margin] = 0.0
    steps = [least]
    top = 0
    for row, table in zip(rows, values, strict=True):
        end = min(reach, top + int(row.max()))
        new = np.full((tables, 2 * margin + end + 1), np.inf)
        reached = np.empty((tables, top + 1))
        for shift, own in zip(row.tolist(), table.T, strict=True):
            width = min(top, end - shift) + 1
            if width < 1:
                continue
            target = new[:, margin + shift : margin + shift + width]
            np.add(least[:, margin : margin + width], own[:, None], out=reached[:, :width])
            np.minimum(target, reached[:, :width], out=target)
        top, least = end, new
        steps.append(new)
    return steps


def _useful(shifts: Sequence[Ints], losses: Sequence[Floats]) -> list[Ints]:
    """Per unit, the options that some table needs: no other one is as cheap and as good there, or first of equals."""
    most = max(len(row) for row in shifts)
    # Units with fewer options are filled up with some that nobody needs.
    cost = np.full((len(shifts), most), np.iinfo(np.int64).max)
    loss = np.full((len(shifts), len(losses[0]), most), np.inf)
    for unit, (row, table) in enumerate(zip(shifts, losses, strict=True)):
        cost[unit, : len(row)], loss[unit, :, : len(row)] = row, table
    first = np.arange(most)[:, None] < np.arange(most)
    cheaper, alike = cost[:, None, :, None] < cost[:, None, None, :], cost[:, None, :, None] == cost[:, None, None, :]
    better, equal = loss[:, :, :, None] < loss[:, :, None, :], loss[:, :, :, None] == loss[:, :, None, :]
    beaten = ((cheaper | alike) & better) | ((cheaper | (alike & first)) & equal)
    needed = ~beaten.any(axis=2).all(axis=1)
    return [np.flatnonzero(row[: len(own)]) for row, own in zip(needed, shifts, strict=True)]
