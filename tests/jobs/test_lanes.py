"""What jobs say, on the way to the one display, and there."""

import logging

from compresskit.jobs.lanes import Sent, Shown
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
