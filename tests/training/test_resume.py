import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compresskit.errors import RunFolderError
from compresskit.training import state
from compresskit.training.optimization.optimizers import SGD
from tests.forked.start import environment, python

PROGRAM = Path(__file__).with_name("tiny_run.py")


def run_program(folder, *arguments):
    done = python(PROGRAM, folder, *arguments)
    assert done.returncode == 0, done.stderr


def kill_at(folder, epoch, step, *arguments):
    """Starts the program and kills it, as the system would, once it says that it is there."""
    command = [sys.executable, PROGRAM, folder, "--stop-at", str(epoch), str(step), *arguments]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reached\n"
        process.kill()
    assert not (folder / "last.pt").exists()


@pytest.mark.parametrize(("epoch", "parts"), [(1, 1), (2, 1), (2, 3)])
def test_a_killed_run_ends_with_the_tensors_of_one_that_was_not(tmp_path, epoch, parts):
    """Adam, cosine, dropout and batch norm; killed in the middle of an epoch."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    accumulating = ["--accumulate", str(parts)]
    run_program(whole, *accumulating)
    kill_at(killed, epoch, 3, *accumulating)
    assert (killed / "state.pt").exists() == (epoch > 1)
    run_program(killed, "--resume", *accumulating)
    for name in ("last.pt", "best.pt"):
        expected, found = (torch.load(folder / name, weights_only=True) for folder in (whole, killed))
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected)
    epochs = [line.split(",")[0] for line in (killed / "metrics.csv").read_text().splitlines()]
    assert epochs == ["epoch", "1", "2", "3", "4"]
    assert sorted(path.name for path in killed.iterdir()) == sorted(path.name for path in whole.iterdir())


def test_the_state_holds_plain_data_only(tiny, tmp_path):
    tiny.run(tmp_path, tiny.OPTIONS)
    content = torch.load(tmp_path / "state.pt", weights_only=True)
    assert set(content) == {"version", "made_for", "rows", "best_epoch", "best_metric", "cosines", "trainer"}


def test_a_finished_run_returns_at_once_with_the_same_result(tiny, tmp_path, monkeypatch):
    net, history = tiny.run(tmp_path, tiny.OPTIONS)
    written = (tmp_path / "state.pt").read_bytes()

    class Nobody:
        def on_step(self, epoch, step, steps):
            raise AssertionError("no step was left to do")

        on_epoch = on_step

    monkeypatch.setattr("compresskit.training.loop.Trainer", None)  # whose optimiser takes long to import
    again, resumed = tiny.run(tmp_path, tiny.OPTIONS, resume=True, progress=Nobody())
    assert resumed.rows == history.rows
    assert (resumed.best_epoch, resumed.best_metric) == (history.best_epoch, history.best_metric)
    torch.testing.assert_close(resumed.best_state, history.best_state, rtol=0, atol=0)
    torch.testing.assert_close(again.state_dict(), net.state_dict(), rtol=0, atol=0)
    assert (tmp_path / "state.pt").read_bytes() == written


def test_without_resume_the_old_state_is_forgotten(tiny, tmp_path):
    tiny.run(tmp_path, tiny.OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        tiny.run(tmp_path, tiny.OPTIONS, progress=Interrupt(1))
    assert not (tmp_path / "state.pt").exists()


def test_an_interrupt_leaves_the_last_whole_epoch_and_no_other_file(tiny, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        tiny.run(tmp_path, tiny.OPTIONS, progress=Interrupt(3))
    assert len(torch.load(tmp_path / "state.pt", weights_only=True)["rows"]) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"state.pt", "best-weights.pt", "metrics.csv"}


class Interrupt:
    """Control-C in the second step of an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_step(self, epoch, step, steps):
        if (epoch, step) == (self.epoch, 2):
            raise KeyboardInterrupt

    def on_epoch(self, row):
        pass


def test_a_resumed_run_has_each_tensorboard_event_once(tiny, tmp_path, monkeypatch):
    """Interrupted where the events of epoch 3 are written, but not yet its state."""
    options, save = replace(tiny.OPTIONS, tensorboard=True), state.save

    def interrupted(folder, made_for, record, trainer):
        if len(record.rows) == 3:
            raise KeyboardInterrupt
        save(folder, made_for, record, trainer)

    monkeypatch.setattr(state, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tiny.run(tmp_path, options)
    monkeypatch.undo()
    tiny.run(tmp_path, options, resume=True)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train_loss")] == [1, 2, 3, 4]


@pytest.mark.parametrize(("higher_is_better", "best"), [(True, [1, 2, 2, 2]), (False, [1, 1, 1, 4])])
def test_of_equal_epochs_the_first_is_the_best(higher_is_better, best):
    record, found = state.Record(), []
    for value in (0.5, 0.7, 0.7, 0.4):
        is_best = record.add({"x": value}, "x", higher_is_better=higher_is_better)
        assert is_best == (record.best_epoch == len(record.rows))
        found.append(record.best_epoch)
    assert found == best


def test_refuses_other_options_data_seed_or_weights_and_names_them_all(tiny, tmp_path):
    tiny.run(tmp_path, tiny.OPTIONS)
    options = replace(tiny.OPTIONS, optimizer=SGD(lr=0.5), batch_size=12)
    with pytest.raises(RunFolderError) as refusal:
        tiny.run(tmp_path, options, seed=9, data=tiny.dataset(train=40), net=tiny.network(seed=1), resume=True)
    for difference in (
        "batch_size was 10, is 12",
        "optimizer.kind was adam, is sgd",
        "optimizer.lr was 0.02, is 0.5",
        "seed was 3, is 9",
        "data was tiny classification 48, is tiny classification 40",
        "starting weights was ",
        "start anew with --force",
    ):
        assert difference in str(refusal.value)
    assert "schedule" not in str(refusal.value)


def test_refuses_a_damaged_state(tiny, tmp_path):
    tiny.run(tmp_path, tiny.OPTIONS)
    path = tmp_path / "state.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(RunFolderError, match="state.pt: cannot be read .* start anew with --force"):
        tiny.run(tmp_path, tiny.OPTIONS, resume=True)


def test_refuses_a_state_of_an_unknown_format(tiny, tmp_path):
    tiny.run(tmp_path, tiny.OPTIONS)
    path = tmp_path / "state.pt"
    torch.save({**torch.load(path, weights_only=True), "version": 99}, path)
    with pytest.raises(RunFolderError, match="format 99 is unknown, 1 is read"):
        tiny.run(tmp_path, tiny.OPTIONS, resume=True)
