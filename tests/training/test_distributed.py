import platform
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compresskit import distributed
from compresskit.distributed import Group, connect
from compresskit.errors import RecipeError
from tests.forked.start import python, torchrun

PROGRAM = str(Path(__file__).with_name("tiny_run.py"))


@pytest.mark.parametrize("parts", ["1", "3"])
def test_two_processes_train_as_one_does(tmp_path, parts):
    """Plain SGD without dropout and batch norm, whose draws and statistics are each process's own.

    Of an expanded net, whose products are formed once for the parts of a batch.
    """
    for name, start in {"one": python, "two": torchrun}.items():
        done = start(PROGRAM, tmp_path / name, "--shared", "--accumulate", "1" if name == "one" else parts)
        assert done.returncode == 0, done.stderr
    for name in ("last.pt", "best.pt"):
        one, two = (torch.load(tmp_path / folder / name, weights_only=True) for folder in ("one", "two"))
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)  # float32, summed in another order
    one, two = ((tmp_path / folder / "metrics.csv").read_text().splitlines() for folder in ("one", "two"))
    for row_of_one, row_of_two in zip(one[1:], two[1:], strict=True):
        figures = (list(map(float, row.split(",")))[:-2] for row in (row_of_one, row_of_two))  # but for the times
        first, second = figures
        assert first == pytest.approx(second, rel=1e-4)  # float32, as above


def test_a_process_alone_is_a_group_of_one(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    group = connect("cpu")
    assert group == Group(rank=0, world=1, local_rank=0)
    assert group.is_main
    tensor = torch.tensor([2.0])
    group.sum_tensors([tensor])
    group.broadcast([tensor])
    group.barrier()
    group.close()
    assert tensor.item() == 2.0


def test_each_process_has_a_gpu_of_its_own():
    assert Group(rank=5, world=8, local_rank=1).device("cuda") == torch.device("cuda", 1)
    assert Group(rank=5, world=8, local_rank=1).device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("batch_size", "message"),
    [(10, "batch_size: 10 cannot be shared by 3 processes; use a multiple of 3"), (60, "more than the 48 training")],
)
def test_refuses_batches_that_processes_cannot_share(tiny, tmp_path, batch_size, message):

    with pytest.raises(RecipeError, match=message):
        tiny.run(tmp_path, replace(tiny.OPTIONS, batch_size=batch_size), group=Group(rank=1, world=3))


def test_a_peer_that_is_about_to_die_is_waited_for(monkeypatch):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    peer = distributed.Peer(1, platform.node(), child.pid)
    monkeypatch.setattr(distributed, "_peers", [peer])
    assert distributed.ended_peers() == distributed.ended_peers(patience=0.05) == []
    threading.Timer(0.3, child.kill).start()
    assert distributed.ended_peers(patience=30) == [peer]  # dead, not buried
    child.wait()
    assert distributed.ended_peers() == [peer]
