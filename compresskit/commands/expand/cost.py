"""What a training step of expanded networks costs, said before it is spent: a table, and notes where it is much."""

import math
from collections.abc import Mapping
from typing import Any

from compresskit.commands.result import Result, Table
from compresskit.passes.expand.rates import StepCost

BYTES = 4  # of a float32


def add_costs(result: Result, costs: Mapping[str, StepCost], states: Mapping[str, int]) -> None:
    """A row for each expanded network, and a note for each whose step costs more than its limit.

    states: numbers that each network's optimiser keeps of a parameter; with the parameter and its gradient they are its
    memory.
    """
    if not costs:
        return
    columns = (
        "network",
        "MACs of a step",
        "of them products",
        "over compact",
        "parameters in training",
        "MB with gradients and optimiser",
    )
    rows: list[tuple[Any, ...]] = [
        (
            name,
            cost.layers + cost.products,
            cost.products,
            cost.times,
            cost.parameters,
            BYTES * (2 + states[name]) * cost.parameters / 1e6,
        )
        for name, cost in costs.items()
    ]
    result.tables.append(Table("a training step, with its gradients", columns, rows))
    result.notes += [warning(name, cost) for name, cost in costs.items() if cost.times > cost.limit]


def warning(name: str, cost: StepCost) -> str:
    """How much more a step costs than the compact network's, and what would cost less."""
    said = f"{name}: a step takes {cost.times:.3g} times the multiply-adds of the compact net's"
    if not cost.products:
        cheaper = f", and {cost.separate}" if cost.separate else "; mode: online multiplies them first"
        return f"{said}, since its factors run one by one{cheaper}"
    batch = math.ceil(cost.batch * cost.products / ((cost.limit - 1) * cost.compact))
    rate = "" if cost.rate_below is None else f"expand.rate: {cost.rate_below:g}, "
    ways = f"{rate}rate: auto, " if cost.auto else rate
    return (
        f"{said}: products of factors take {cost.products / cost.compact:.3g} times, whatever the batch is; {ways}"
        f"{'or ' if ways else ''}batches of {batch:,} for {cost.batch:,} would keep it below {cost.limit:g}"
    )
