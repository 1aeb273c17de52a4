"""The figures of reports: what is said of latency."""

import pytest

from compresskit.commands.figures import slower
from compresskit.commands.result import Figure


def rows(macs: tuple[float, float], latency: tuple[float, float]) -> list[Figure]:
    return [
        Figure("MACs", macs[:1], macs[1:], "count"),
        Figure("latency, batch 1, cpu", latency[:1], latency[1:], "ms"),
    ]


@pytest.mark.parametrize(
    ("macs", "latency", "said"),
    [((100, 50), (2.0, 2.1), True), ((100, 50), (2.0, 1.0), False), ((100, 150), (2.0, 2.1), False)],
)
def test_latency_that_did_not_drop_is_said_where_multiplications_did(macs, latency, said):
    assert bool(slower(rows(macs, latency))) == said


def test_nothing_is_said_without_a_net_before():
    assert slower([Figure("MACs", (), (1,), "count"), Figure("latency", (), (1,), "ms")]) == []
