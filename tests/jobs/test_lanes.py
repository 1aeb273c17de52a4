"""What jobs say, on the way to the one display, and there."""

import logging
from types import SimpleNamespace

import pytest

from compresskit import report
from compresskit.jobs.lanes import Sent, Shown, percents
from compresskit.report import TerminalProgress


def test_lines_carry_the_name_of_their_job(capsys):
    with TerminalProgress(quiet=False) as progress:
        lane = progress.lane("trial-2")
        progress.log("a line of the run")
        lane.start("train", 10)
        lane.log("epoch 1")
        lane.note("odd data")
        progress.lane("trial-1").note("odd data")
        lane.end()
    assert capsys.readouterr().err == "a line of the run\ntrial-2: epoch 1\ntrial-2: warning: odd data\n"
    assert progress.notes == ["odd data"]


def test_bars_stand_beside_each_other(monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    progress = TerminalProgress(quiet=False)
    progress.start("moments", 5)
    lanes = [progress.lane(name) for name in ("a", "b")]
    for lane in lanes:
        lane.start("train", 10)
    lanes[0].update(4, "loss 1.0")
    assert [(task.description, task.completed) for task in progress.bar.tasks] == [("a: train", 4), ("b: train", 0)]
    lanes[0].end()
    assert [task.description for task in progress.bar.tasks] == ["b: train"]


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(report.time, "monotonic", lambda: now.seconds)
    return now


def told(clock, capsys, updates):
    """What is said of a work of 1,000 by (seconds, done)."""
    progress = TerminalProgress(quiet=False)
    for task, seconds, done in updates:
        clock.seconds = seconds
        if done is None:
            progress.start(task, 1000)
        else:
            progress.update(done)
    return capsys.readouterr().err.splitlines()


def test_the_time_left_is_that_of_what_is_done_now(clock, capsys):
    """Of work that was resumed at 800, ten more took 40 s."""
    updates = [("match", 0, None), ("match", 4, 801), ("match", 40, 810), ("match", 71, 811)]
    assert told(clock, capsys, updates) == ["match: 810 of 1000, 760 s left", "match: 811 of 1000, 1266 s left"]


def test_many_short_works_are_told_now_and_then(clock, capsys):
    updates = [(name, second + more, done) for second in range(0, 100, 10) for name in [f"conv{second}"]
               for more, done in ((0, None), (1, 100), (9, 900))]  # fmt: skip
    assert [line.split()[0] for line in told(clock, capsys, updates)] == ["conv30:", "conv60:"]


def test_shares_of_work_are_by_what_its_parts_take():
    seen = []
    lane = SimpleNamespace(start=lambda *what: seen.append(what), update=seen.append)
    done = percents(lane, "least squares", [1, 8, 1])
    for _ in range(3):
        done()
    assert seen == [("least squares, percent", 100), 10, 90, 100]


def test_updates_do_not_come_more_often_than_anybody_looks():
    sent = []
    progress = Sent(sent.append)
    progress.start("train", 1000)
    for done in range(1000):
        progress.update(done)
    progress.log("epoch 1")
    assert sent[0] == ("start", "train", 1000)
    assert sent[-1] == ("log", "epoch 1")
    assert len(sent) < 100


def test_what_is_logged_is_told_by_its_level(caplog):
    sent, warned = [], set()
    progress = Sent(sent.append)
    for level in (logging.INFO, logging.WARNING):
        progress.emit(logging.LogRecord("compresskit", level, "", 0, "%s layers", (3,), None))
    assert sent == [("log", "3 layers"), ("warn", "3 layers")]
    lane = TerminalProgress(quiet=True).lane("a")
    for kind, text in sent:
        Shown(lane, warned)(kind, text)
    assert [record.getMessage() for record in caplog.records] == ["3 layers"]
