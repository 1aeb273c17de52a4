"""Jobs on a cluster of two machines, which are two nodes of Ray on this one."""

import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from compresskit.errors import ConvergenceError, JobError, RecipeError, ResourceError
from compresskit.jobs import cluster
from compresskit.jobs.places import Place
from tests.jobs.doing import order
from tests.jobs.test_processes import MODULE, ROOT, Said, gone, lives, waiting

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
ONE = Place(1)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The first machine, where jobs are asked for, has no room for any; two others have room for one each."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")  # other tests may have most of the memory
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    made.added = [made.add_node(num_cpus=1) for _ in range(2)]
    made.wait_for_nodes()
    monkeypatch.setenv("RAY_ADDRESS", made.address)
    yield made
    made.shutdown()


def spread(does: dict[str, str], folder: Path, said: Said, place: Place = ONE) -> dict[str, Exception]:
    return cluster.spread("ray", MODULE, {name: order(what, folder) for name, what in does.items()}, place, said)


@needs_ray
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_what_fails_stops_no_other_and_all_is_said(nodes, tmp_path):
    said = Said()
    does = ["ends well", "diverges", "is killed", "breaks"]
    failed = spread({name: name for name in does}, tmp_path, said)
    assert set(failed) == set(does[1:])
    assert isinstance(failed["diverges"], ConvergenceError)
    assert str(failed["is killed"]).startswith("its process was killed by SIGKILL")
    assert isinstance(failed["breaks"], JobError)
    assert "unforeseen" in failed["breaks"].__notes__[0]  # the traceback, for --debug
    assert "ends well: ends well, 3" in said.lines
    assert f"ends well: ends well with 1 of {ONE}" in said.lines
    assert said.lines.count("diverges: failed: the loss is nan") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["ends well"]


@needs_ray
@pytest.mark.filterwarnings("ignore")
def test_a_job_whose_machine_is_lost_starts_again_on_another(nodes, tmp_path):
    found: list[set[int]] = []

    def lose() -> None:
        found.append(waiting(tmp_path))
        nodes.remove_node(nodes.added[0], allow_graceful=False)
        deadline = time.monotonic() + 60
        while all(map(lives, found[0])) and time.monotonic() < deadline:
            time.sleep(0.1)
        (tmp_path / "go on").touch()

    thread = threading.Thread(target=lose)
    thread.start()
    said = Said()
    failed = spread({"a": "waits to go on", "b": "waits to go on"}, tmp_path, said)
    thread.join()
    assert failed == {}
    assert len(list(tmp_path.glob("*.pid"))) == 3  # two at first, and one of them again
    assert {"a: ended", "b: ended"} <= set(said.lines)


@needs_ray
@pytest.mark.filterwarnings("ignore")
def test_what_is_interrupted_ends_with_its_state(nodes, tmp_path):
    found: list[set[int]] = []

    class Stops(Said):
        def lane(self, name: str) -> Said:
            if name == "b":
                found.append(waiting(tmp_path))
                raise KeyboardInterrupt
            return super().lane(name)

    with pytest.raises(KeyboardInterrupt):
        spread({"a": "waits", "b": "waits"}, tmp_path, Stops())
    assert gone(found[0], 0)
    assert {int(path.stem) for path in tmp_path.glob("*.state")} == found[0]


@needs_ray
@pytest.mark.filterwarnings("ignore")
def test_a_place_that_no_machine_has_is_refused(nodes, tmp_path):
    with pytest.raises(ResourceError, match="a job takes a GPU and a CPU, and no machine of the cluster has that"):
        spread({"a": "x"}, tmp_path, Said(), Place(1, 0))


@needs_ray
@pytest.mark.filterwarnings("ignore")
def test_no_cluster_is_an_error(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ResourceError, match="--jobs ray: no cluster answers; start one .ray start --head."):
        spread({"a": "x"}, tmp_path, Said())


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_it_is_said_what_to_install(tmp_path):
    with pytest.raises(RecipeError, match="Ray is missing; pip install 'compresskit.ray.'"):
        spread({"a": "x"}, tmp_path, Said())


@pytest.mark.parametrize(
    ("asked", "found"), [("ray", True), ("ray://host:10001", True), ("auto", False), ("2", False), ("rays", False)]
)
def test_what_asks_for_a_cluster(asked, found):
    assert cluster.is_cluster(asked) == found
