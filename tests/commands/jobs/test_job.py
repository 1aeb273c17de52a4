"""Jobs of a run in processes of their own: the same files and figures as one after another, and what fails alone."""

import csv
import json
import re
import shutil
import signal
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from compresskit.commands.jobs import job
from compresskit.commands.session import Session
from compresskit.jobs import processes
from compresskit.jobs.processes import prepare
from tests.commands.conftest import program, report, rows
from tests.commands.test_program import ended, processes_of, started, wait_for
from tests.jobs.test_processes import gone
from tests.pretended_gpu import pretended_gpu

NET = """\
model: {kind: convnet, channels: [3, 4]}
data: {kind: mnist-mini, limit: 300, validation: 100}
trials: 2
report: {latency_repeats: 1, plots: false}
"""
FIT = "{epochs: 2, batch_size: 64, optimizer: {kind: adam, lr: 5e-3}}"
LOST = "{epochs: 1, batch_size: 64, optimizer: {kind: sgd, lr: 1.0e+38}}"
SECTIONS = {
    "train": f"""\
train:
  epochs: 2
  batch_size: 64
  optimizer: {{kind: adam, lr: 5e-3}}
  memorisation: {{label_noise: [0.5]}}
  compare:
    rows: {{narrow: {{model.channels: [2, 2]}}, lost: {{train: {LOST}}}}}
    columns: {{one: {{train.epochs: 1}}}}
""",
    "finetune": f"finetune: {FIT}\n",
    "expand": f"""\
train: {FIT}
expand: {{strategy: cl, rate: 2, compare: {{compact: {{strategy: none}}, lost: {{strategy: none, train: {LOST}}}}}}}
""",
    "prune": f"""\
prune:
  target: {{macs: 60%}}
  samples: 100
  held_out: 100
  retrain: {FIT}
  compare: {{at: [60%, 40%], repair: [parallel, none]}}
""",
    "reconstruct": f"""\
reconstruct:
  target: {{size: 60%}}
  samples: 100
  held_out: 100
  retrain: {FIT}
  compare: {{at: [60%, 40%], selection: [backward, group-lasso], sparse_rows: true}}
""",
    "fuse": f"""\
fuse: {{layers: [[conv2, head]], samples: 100, held_out: 100, retrain: {FIT}, baseline: both}}
""",
}
TIMES = re.compile("seconds|latency|command|folder|images_per_second")
SLOWER = "latency did not drop"  # a note on times
NETWORKS = {"model.pt", "best.pt", "pruned.pt", "fused.pt", "expanded.pt", "reconstructed.pt"}


@pytest.fixture(autouse=True, scope="module")
def server() -> None:
    """Of processes, one for all tests: each program would start its own."""
    prepare("compresskit.commands.validate.verb")


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `train` with two trials."""
    folder = tmp_path_factory.mktemp("parents")
    (folder / "net.yaml").write_text(f"{NET}train: {FIT}\n")
    done = program("train", "net.yaml", "--out", "run", cwd=folder)
    assert done.status == 0, done.err
    return folder / "run"


def untimed(value: Any) -> Any:
    """The same without times, of a report's tables those below `seconds` too."""
    if isinstance(value, dict):
        if TIMES.search(str(value.get("name", "")) + str(value.get("title", ""))):
            return {}
        if "columns" in value:
            kept = [place for place, column in enumerate(value["columns"]) if not TIMES.search(column)]
            return [[row[place] for place in kept] for row in value["rows"] if len(row) > max(kept)]
        return {key: untimed(item) for key, item in value.items() if not TIMES.search(key)}
    return [untimed(item) for item in value if not str(item).startswith(SLOWER)] if isinstance(value, list) else value


def contents(folder: Path) -> dict[str, Any]:
    """What a run has left, but for times: tensors, tables and plain data by file."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name in NETWORKS:
            found[name] = torch.load(path, weights_only=True)["tensors"]
        elif path.name == "metrics.csv":
            found[name] = metrics(path.parent)
        elif path.suffix == ".json" and path.name != "run.json":
            found[name] = untimed(json.loads(path.read_text()))
        elif path.is_file() and not path.name.startswith("."):
            found[name] = None
    return found


def same(one: Path, other: Path) -> None:
    first, second = contents(one), contents(other)
    assert first.keys() == second.keys()
    assert any(name.endswith("model.pt") for name in first)
    for name, there in first.items():
        if name.endswith(".pt") and there is not None:
            assert there.keys() == second[name].keys()
            assert all(torch.equal(tensor, second[name][key]) for key, tensor in there.items()), name
        else:
            assert json.dumps(there, indent=1) == json.dumps(second[name], indent=1), name


@pytest.mark.parametrize("verb", SECTIONS)
def test_they_end_as_one_after_another(call, parents, verb):
    Path("net.yaml").write_text(NET + SECTIONS[verb])
    trials = 2 if verb in ("train", "finetune") else 1  # of the others, what is compared makes jobs enough
    arguments = [verb, "net.yaml", f"trials={trials}", *(() if verb in ("train", "expand") else ("-c", parents))]
    failing = int("lost" in SECTIONS[verb])
    one, two = (call(*arguments, "--out", f"jobs-{jobs}", "--jobs", jobs) for jobs in (1, 2))
    assert (one.status, two.status) == (failing, failing), one.err + two.err
    same(Path("jobs-1"), Path("jobs-2"))
    if failing:
        failed = report("jobs-2")["failed"]
        lost = ["compare/lost/one/trial-1", "compare/lost/one/trial-2"] if verb == "train" else ["compare/lost/trial-1"]
        assert list(failed) == lost
        assert all("the loss is nan" in why for why in failed.values())
        assert rows("jobs-2", "jobs that failed") == [list(item) for item in failed.items()]
        jobs = "2 jobs" if len(lost) == 2 else "1 job"
        assert two.err.splitlines()[-1] == (
            f"error: {jobs} failed, and the report has all others: {', '.join(lost)}; --resume takes up what is missing"
        )


def test_what_jobs_have_measured_is_not_measured_again(call, monkeypatch):
    """But for a checkpoint of other weights, which is no job's."""
    Path("net.yaml").write_text(NET + "train: {epochs: 1, batch_size: 64}\n")
    measured, evaluate = [], Session.evaluate
    monkeypatch.setattr(Session, "evaluate", lambda *given: measured.append(given[1]) or evaluate(*given))
    assert call("train", "net.yaml", "trials=2", "--out", "made", "--jobs", 2).status == 0
    assert measured == []
    spread = processes.spread

    def mixed_up(*given):
        failed = spread(*given)
        shutil.copy("made/trial-1/model.pt", "made/trial-2/model.pt")
        Path("made/trial-1/best.pt").write_bytes(b"")
        return failed

    monkeypatch.setattr(processes, "spread", mixed_up)
    assert call("train", "net.yaml", "trials=2", "--out", "made", "--jobs", 2, "--force").status == 0
    assert len(measured) == 2


OWN = """\
import os
import signal
from pathlib import Path

import torch


def net(num_classes):
    if torch.initial_seed() == 1 and Path("kill").exists():  # of the second trial
        os.kill(os.getpid(), signal.SIGKILL)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(28 * 28, num_classes))
"""


def test_a_killed_process_costs_its_job_alone_which_resume_takes_up(call):
    Path("ownnet.py").write_text(OWN)
    Path("net.yaml").write_text(f"{NET}train: {FIT}\n".replace("kind: convnet, channels: [3, 4]", "kind: ownnet:net"))
    Path("kill").touch()
    arguments = ["train", "net.yaml", "trials=3", "--jobs", 2]
    killed = call(*arguments, "--out", "out")
    assert killed.status == 1
    assert "trial-2: failed: its process was killed by SIGKILL" in killed.err
    assert killed.err.splitlines()[-1] == (
        "error: 1 job failed, and the report has all others: trial-2; --resume takes up what is missing"
    )
    assert [row[0] for row in rows("out", "train: 2 epochs")] == [0, 2]
    Path("kill").unlink()
    (resumed, whole) = (
        call(*arguments, "--out", "out", "--resume"),
        call("train", "net.yaml", "trials=3", "--out", "all"),
    )
    assert (resumed.status, whole.status) == (0, 0), resumed.err
    same(Path("out"), Path("all"))


def test_the_report_of_a_comparison_stands_without_the_runs_own_network(call):
    compare = "{rows: {slow: {train.optimizer.lr: 1e-2}}}"
    Path("net.yaml").write_text(f"{NET}train: {LOST}\n")
    for jobs in (1, 2):
        found = call("train", "net.yaml", f"train.compare={compare}", "trials=1", "--out", f"{jobs}", "--jobs", jobs)
        assert found.status == 1
        assert report(f"{jobs}")["failed"].keys() == {"net"}
        assert rows(f"{jobs}", "test accuracy")[0][0] == "slow"
    alone = call("train", "net.yaml", "trials=1", "--out", "alone")
    assert alone.err.startswith("error: training, epoch 1, step 2: the loss is nan")
    every = call("train", "net.yaml", "--out", "every", "--jobs", 2)
    assert (every.status, every.err.splitlines()[-1]) == (1, alone.err.strip())


@pytest.mark.parametrize("jobs", [1, 2])
def test_debug_shows_where_each_job_failed(call, jobs):
    """Where others did not fail, and where all did."""
    compare = f"{{rows: {{slow: {{train.optimizer.lr: 1e-2}}, lost: {{train: {LOST}}}}}}}"
    Path("net.yaml").write_text(f"{NET}train: {FIT}\n")
    for changes in ([f"train.compare={compare}", "trials=1"], ["train.optimizer={kind: sgd, lr: 1e38}"]):
        arguments = ["train", "net.yaml", *changes, "-q", "--jobs", jobs, "--force"]
        plain, whole = (call(*arguments, *debug) for debug in ((), ("--debug",)))
        assert (plain.status, whole.status) == (1, 1)
        assert "Traceback" not in plain.err
        assert plain.err.splitlines()[-1] == whole.err.splitlines()[-1]
        assert re.search(r"trainer.py.*, in settle\n.*\n.*errors.ConvergenceError: training, epoch", whole.err)


def test_a_signal_ends_all_and_they_go_on(tmp_path):
    (tmp_path / "net.yaml").write_text(f"{NET}train: {FIT}\n")
    long = ("train", "net.yaml", "train.epochs=2000", "--out", "out", "--jobs", "2")
    states = [tmp_path / f"out/trial-{trial}/state.pt" for trial in (1, 2)]
    process = started(tmp_path, *long)
    wait_for(lambda: all(state.exists() for state in states))
    descendants = {pid for child in processes_of(process.pid) for pid in (child, *processes_of(child))}
    process.send_signal(signal.SIGINT)
    errors = ended(process)
    assert (process.returncode, errors.splitlines()[-1]) == (
        130, "interrupted; --resume goes on from the last saved state"
    )  # fmt: skip
    assert gone(descendants, 2)
    done = [epochs(state) for state in states]
    again = started(tmp_path, *long, "--resume")
    wait_for(lambda: all(epochs(state) > before for state, before in zip(states, done, strict=True)))
    descendants = {pid for child in processes_of(again.pid) for pid in (child, *processes_of(child))}
    assert len(descendants) >= 2
    again.kill()
    again.communicate()
    assert gone(descendants)


def test_a_second_run_in_its_folder_is_refused_and_disturbs_nothing(call, tmp_path, request):
    (tmp_path / "net.yaml").write_text(f"{NET}train: {FIT}\n")
    train = ["train", "net.yaml", "train.schedule={kind: constant}"]  # whatever the epochs
    arguments = [*train, "train.epochs=2000", "--out", "out"]
    first = started(tmp_path, *arguments, "--jobs", "2")
    request.addfinalizer(first.kill)
    states = [tmp_path / f"out/trial-{trial}/state.pt" for trial in (1, 2)]
    wait_for(lambda: all(state.exists() for state in states))
    for options in (["--jobs", 2], ["--jobs", 2, "--resume"], ["--jobs", 2, "--force"], ["--resume"]):
        refused = call(*arguments, *options)
        assert refused.status == 1
        assert refused.err.startswith(f"error: out: process {first.pid} on ")
        assert "is writing there; wait for it, stop it, or write elsewhere" in refused.err
    done = [epochs(state) for state in states]
    wait_for(lambda: all(epochs(state) > before for state, before in zip(states, done, strict=True)))
    first.send_signal(signal.SIGINT)
    ended(first)
    assert first.returncode == 130
    assert call(*train, "--out", "alone").status == 0
    for state in states:
        found, alone = (metrics(folder / state.parent.name) for folder in (tmp_path / "out", tmp_path / "alone"))
        assert [int(row["epoch"]) for row in found] == list(range(1, len(found) + 1))
        assert found[:2] == alone


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [untimed(row) for row in csv.DictReader(file)]


def epochs(state: Path) -> int:
    return len(state.with_name("metrics.csv").read_text().splitlines()) - 1


def test_each_has_a_gpu_of_its_own(call, monkeypatch):
    """Two pretended ones; processes would pretend none, so that jobs run here, one after another."""
    used = []

    def here(module: str, orders: Mapping[str, Callable], places: list, board: Any, more: Any) -> dict:
        for number, (name, order) in enumerate(orders.items()):
            used.append((name, places[number % len(places)].gpu))
            import_module(module).run(order(places[number % len(places)]), board.lane(name))
        return {}

    Path("net.yaml").write_text(f"{NET}train: {FIT}\n")
    devices = []
    monkeypatch.setattr(job.processes, "spread", here)
    monkeypatch.setattr("compresskit.commands.trials.fit", partial(watched_fit, devices))
    with pretended_gpu(), patch.object(torch.cuda, "device_count", lambda: 2):
        refused = call("train", "net.yaml", "--device", "cuda", "--jobs", 3)
        assert (refused.status, refused.err) == (
            2, "error: --jobs 3: there are 2 GPUs, and each job takes one; give --jobs 2 or auto, or --device cpu\n"
        )  # fmt: skip
        planned = call("train", "net.yaml", "--device", "cuda", "--jobs", "auto", "--dry-run")
        assert (
            "2 jobs, 2 at a time, each in a process with 1 thread and a GPU of its own (cuda:0, cuda:1)" in planned.out
        )
        for jobs in (2, 1):
            done = call("train", "net.yaml", "--device", "cuda", "--jobs", jobs, "--out", f"jobs-{jobs}")
            assert done.status == 0, done.err
    assert used == [("trial-1", 0), ("trial-2", 1)]
    assert [device.index for device in devices] == [0, 1, 0, 0, 0, 0]  # in jobs; when they were found done; without
    same(Path("jobs-1"), Path("jobs-2"))


def watched_fit(devices: list, *arguments: Any, **options: Any) -> Any:
    from compresskit.training.loop import fit

    devices.append(options["device"])
    return fit(*arguments, **options)


def test_what_is_long_comes_first_and_a_plan_says_where(call, monkeypatch):
    order = []
    monkeypatch.setattr(job.processes, "spread", lambda module, orders, *rest: order.extend(orders) or {})
    Path("net.yaml").write_text(NET + SECTIONS["train"])
    compare = "{rows: {wide: {model.channels: [8, 8]}, narrow: {model.channels: [2, 2]}, long: {train.epochs: 9}}}"
    arguments = ["train", "net.yaml", "trials=1", f"train.compare={compare}", "~train.memorisation", "--jobs", 3]
    planned = call(*arguments, "--dry-run")
    assert "4 jobs, 3 at a time, each in a process with 1 thread of the CPU" in planned.out
    assert not Path("runs").exists()
    assert call(*arguments, "train.epochs=1").status == 0
    assert order == ["compare/long", "compare/wide", "net", "compare/narrow"]
    single = call("train", "net.yaml", "trials=1", "~train.compare", "~train.memorisation", "--jobs", 2, "--dry-run")
    assert "1 job, for which --jobs changes nothing" in single.out
    planned = call(*arguments[:-2], "--jobs", "ray", "--dry-run")
    assert "4 jobs, on the machines of the cluster (ray), each with a CPU" in planned.out


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("0", "'0' was given; allowed: a number from 1 on, auto, or for a"),
        ("many", "'many' was given; allowed"),
    ],
)
def test_no_number_of_jobs(call, asked, told):
    Path("net.yaml").write_text(f"{NET}train: {FIT}\n")
    found = call("train", "net.yaml", "--jobs", asked)
    assert found.status == 2
    assert found.err.startswith(f"error: --jobs: {told}")


def test_torchrun_refuses_them(call, monkeypatch):
    Path("net.yaml").write_text(f"{NET}train: {FIT}\n")
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    found = call("train", "net.yaml", "--jobs", 2)
    assert (found.status, found.err[:76]) == (
        2, "error: --jobs 2: torchrun has started 2 processes that share each job; start"
    )  # fmt: skip


def test_what_is_timed_is_not_run_beside_anything(call, parents):
    Path("net.yaml").write_text(NET + "prune: {target: {latency: 90%}}\n")
    found = call("prune", "net.yaml", "-c", parents, "--jobs", 2)
    assert found.status == 2
    assert "--jobs 2: a target of latency is timed, and jobs beside each other slow each other down" in found.err
