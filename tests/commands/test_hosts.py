"""One run on two machines: two network namespaces with a cable between them, and host names of their own."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from compresskit.storage.checkpoint import load
from tests.commands.conftest import RECIPE, Outcome
from tests.forked.start import SCRIPTS, environment, torchrun

NUMBER = os.getpid() % 100_000  # tests of several processes have names of their own
PORT = 29_555


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[str]]:
    """Names of two namespaces that reach each other at 10.213.7.1 and 10.213.7.2."""
    names = [f"ck{NUMBER}{side}" for side in "ab"]
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        pytest.skip("ip (iproute2) and unshare (util-linux) make the two hosts")
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", names[0], "netns", names[0], "type", "veth", "peer", "name", names[1], "netns", names[1])
        for number, name in enumerate(names, 1):
            ip("-n", name, "addr", "add", f"10.213.7.{number}/24", "dev", name)
            for link in ("lo", name):
                ip("-n", name, "link", "set", link, "up")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this user can make no network namespaces: {error.stderr.decode().strip()}")
    else:
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=30)


@pytest.fixture
def both(hosts) -> Callable[..., list[Outcome]]:
    """Starts the program on both hosts, each in a folder of its own, as the documentation says."""

    def run(folders: list[Path], *arguments: str) -> list[Outcome]:
        started = []
        for rank, (name, folder) in enumerate(zip(hosts, folders, strict=True)):
            words = ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", f'hostname {name}; exec "$@"', "sh"]
            words += [str(SCRIPTS / "torchrun"), "--nnodes=2", "--nproc-per-node=1", f"--node-rank={rank}"]
            words += ["--master-addr=10.213.7.1", f"--master-port={PORT}", "-m", "compresskit", *arguments]
            variables = environment() | {"GLOO_SOCKET_IFNAME": name}
            pipe = subprocess.PIPE
            started.append(subprocess.Popen(words, cwd=folder, env=variables, stdout=pipe, stderr=pipe, text=True))
        answers = [one.communicate(timeout=300) for one in started]
        return [Outcome(one.returncode, *answer) for one, answer in zip(started, answers, strict=True)]

    return run


def test_two_hosts_that_share_a_folder_train_as_two_processes_of_one_do(both, tmp_path):
    (tmp_path / "net.yaml").write_text(RECIPE)
    found = both([tmp_path, tmp_path], "train", "net.yaml", "--out", "two")
    assert [one.status for one in found] == [0, 0], found
    assert torchrun("-m", "compresskit", "train", "net.yaml", "--out", "one", cwd=tmp_path).returncode == 0
    one, two = (load(tmp_path / name / "model.pt").network.state_dict() for name in ("one", "two"))
    assert all(torch.equal(two[name], tensor) for name, tensor in one.items())


def test_a_host_that_lacks_the_checkpoint_says_so(both, tmp_path, trained):
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
        (folder / "net.yaml").write_text(RECIPE)
    shutil.copytree(trained / "runs/net-train", folders[0] / "trained")
    first, second = both(folders, "finetune", "net.yaml", "-c", "trained", "--out", "out")
    assert first.status == second.status == 1
    assert "process 1: error: trained: no such file" in second.err
