import csv
import logging
from dataclasses import replace

import pytest
import torch

from compresskit.errors import ConvergenceError, RecipeError
from compresskit.training.metrics_log import MetricsLog
from compresskit.training.optimization.optimizers import OPTIMIZERS, SGD
from compresskit.training.optimization.schedules import SCHEDULES, Constant, Step
from compresskit.training.options import Training
from compresskit.training.seeds import epoch_seed, set_determinism
from compresskit.training.tasks.losses import CrossEntropy, MeanAbsolute

SETTINGS = {"step": {"step_size": 1}, "multi-step": {"milestones": (1,)}}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def read_rows(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_training_helps(tiny, tmp_path, task):
    data = tiny.dataset(task)
    net, history = tiny.run(tmp_path, replace(tiny.OPTIONS, epochs=25), net=tiny.network(dropout=0.0), data=data)
    assert history.rows[-1]["train_loss"] < 0.5 * history.rows[0]["train_loss"]
    assert net.training is True


def test_steps_are_those_of_a_plain_loop(tiny, tmp_path):
    """Same batches, momentum, decay, clipping and schedule, written out with torch alone."""
    options = Training(
        epochs=2,
        batch_size=16,
        optimizer=SGD(lr=0.3, weight_decay=0.01),
        schedule=Step(step_size=1, gamma=0.5),
        loss=CrossEntropy(label_smoothing=0.2),
        clip_norm=0.1,
    )
    net, data = tiny.network(dropout=0.0), tiny.dataset()
    tiny.run(tmp_path, options, net=net, data=data)
    plain = tiny.network(dropout=0.0)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.3, momentum=0.9, weight_decay=0.01)
    for epoch in range(2):
        optimizer.param_groups[0]["lr"] = 0.3 * 0.5**epoch
        for inputs, targets in data.train.batches(16, torch.device("cpu"), seed=epoch_seed(3, epoch)):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(plain(inputs), targets, label_smoothing=0.2).backward()
            gradient = torch.cat([p.grad.flatten() for p in plain.parameters()])
            for p in plain.parameters():
                p.grad *= min(1.0, 0.1 / (gradient.norm().item() + 1e-6))
            optimizer.step()
    # 1e-6: float32, and the fused step rounds in another order
    torch.testing.assert_close(net.state_dict(), plain.state_dict(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_seed_alone_fixes_the_tensors(tiny, tmp_path, kind, schedule):
    options = Training(
        epochs=2,
        batch_size=10,
        optimizer=OPTIMIZERS[kind](),
        schedule=SCHEDULES[schedule](**SETTINGS.get(schedule, {})),
    )
    one, _ = tiny.run(tmp_path / "one", options)
    torch.rand(3)  # the caller's random state is no part of it
    other, _ = tiny.run(tmp_path / "other", options)
    third, _ = tiny.run(tmp_path / "third", options, seed=4)
    assert equal(one.state_dict(), other.state_dict())
    assert not equal(one.state_dict(), third.state_dict())


def test_leaves_the_callers_random_state(tiny, tmp_path):
    before = torch.get_rng_state()
    tiny.run(tmp_path, tiny.OPTIONS)
    assert torch.equal(torch.get_rng_state(), before)


def test_epochs_and_processes_draw_differently():
    seeds = {epoch_seed(seed, epoch, rank) for seed in range(5) for epoch in range(5) for rank in range(5)}
    assert len(seeds) == 125


def test_rows_of_an_older_version_have_fewer_columns(tmp_path):
    log = MetricsLog(tmp_path, tensorboard=False, first_epoch=1)
    log.write([{"epoch": 1, "test_accuracy": 0.5}, {"epoch": 2, "test_accuracy": 0.6, "test_accuracy@5": 0.9}])
    rows = read_rows(tmp_path)
    assert [row["test_accuracy@5"] for row in rows] == ["", "0.9"]
    assert [row["test_accuracy"] for row in rows] == ["0.5", "0.6"]


def test_accuracy_at_5_picks_no_best_epoch_of_few_classes(tiny, tmp_path):
    with pytest.raises(RecipeError, match="monitor: accuracy@5 was given, .* use accuracy or loss"):
        tiny.run(tmp_path, replace(tiny.OPTIONS, monitor="accuracy@5"))


def test_metrics_csv_has_a_row_an_epoch(tiny, tmp_path):
    _, history = tiny.run(tmp_path, tiny.OPTIONS)
    rows = read_rows(tmp_path)
    assert list(rows[0]) == (
        "epoch step lr train_loss train_accuracy val_accuracy val_loss seconds images_per_second".split()
    )
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "5"), ("2", "10"), ("3", "15"), ("4", "20")]
    assert [{name: float(value) for name, value in row.items()} for row in rows] == history.rows


def test_train_figures_are_means_over_the_samples(tiny, tmp_path):
    """At a learning rate too small to change the float32 weights, the last and smaller batch included."""
    net = tiny.network(norm=False, dropout=0.0)
    data = tiny.dataset("regression")
    options = Training(epochs=1, batch_size=10, optimizer=SGD(lr=1e-30), loss=MeanAbsolute())
    _, history = tiny.run(tmp_path, options, net=net, data=data)
    error = (net(data.train.inputs) - data.train.targets).abs().mean().item()
    assert history.rows[0]["train_mae"] == pytest.approx(error, rel=1e-6)  # float32 sums
    assert history.rows[0]["train_loss"] == pytest.approx(error, rel=1e-6)


@pytest.mark.parametrize(("monitor", "pick"), [("accuracy", max), ("loss", min)])
def test_best_is_the_first_best_epoch_of_the_validation_split(tiny, tmp_path, monitor, pick):
    options = replace(tiny.OPTIONS, epochs=8, optimizer=SGD(lr=0.5), schedule=Constant(), monitor=monitor)
    net, history = tiny.run(tmp_path, options)
    column = [row[f"val_{monitor}"] for row in history.rows]
    assert (history.monitor, history.best_metric) == (f"val_{monitor}", pick(column))
    assert history.best_epoch == column.index(pick(column)) + 1 < 8
    until, _ = tiny.run(tmp_path / "until", replace(options, epochs=history.best_epoch))
    assert equal(history.best_state, until.state_dict())
    assert not equal(history.best_state, net.state_dict())


def test_without_validation_the_test_set_picks_and_a_warning_says_so(tiny, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="compresskit"):
        _, history = tiny.run(tmp_path, tiny.OPTIONS, data=tiny.dataset(validation=False))
    assert history.monitor == "test_accuracy"
    assert [r.message for r in caplog.records] == [
        "best epoch chosen on the test set; set `data.validation` for an honest choice"
    ]


def test_progress_hears_of_every_step_and_epoch(tiny, tmp_path):
    heard = []

    class Listener:
        def on_step(self, epoch, step, steps):
            heard.append((epoch, step, steps))

        def on_epoch(self, row):
            heard.append(row["epoch"])

    tiny.run(tmp_path, replace(tiny.OPTIONS, epochs=2, batch_size=24), progress=Listener())
    assert heard == [(1, 1, 2), (1, 2, 2), 1, (2, 1, 2), (2, 2, 2), 2]


@pytest.mark.parametrize("clip_norm", [1e-3, 1e9])
def test_clip_norm_bounds_the_step(tiny, tmp_path, clip_norm):
    options = Training(
        epochs=1, batch_size=48, optimizer=SGD(lr=1.0, momentum=0.0), schedule=Constant(), clip_norm=clip_norm
    )
    net, _ = tiny.run(tmp_path, options)
    pairs = zip(net.parameters(), tiny.network().parameters(), strict=True)
    moved = torch.cat([(after - before).flatten() for after, before in pairs]).norm().item()
    if clip_norm < 1:
        assert moved == pytest.approx(clip_norm, rel=1e-2)  # the weights near 1 round to 1e-7, the step is 1e-3
    else:
        assert 1e-2 < moved < 1e3


def test_bfloat16_trains_near_float32(tiny, tmp_path):
    options = replace(tiny.OPTIONS, epochs=6)
    losses = {}
    for precision in ("float32", "bfloat16"):
        _, history = tiny.run(tmp_path / precision, replace(options, precision=precision))
        losses[precision] = history.rows[-1]["train_loss"]
    assert losses["float32"] != losses["bfloat16"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.1)  # 8 bits of mantissa


def test_compiled_training_equals_plain(tiny, tmp_path, monkeypatch):
    states, compiled_modules, torchs = {}, [], torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: compiled_modules.append(module) or torchs(module))
    for compiled in (False, True):
        options = Training(epochs=2, batch_size=16, compile=compiled)
        net, _ = tiny.run(tmp_path / str(compiled), options, net=tiny.network(dropout=0.0))
        states[compiled] = net.state_dict()
    assert len(compiled_modules) == 1
    torch.testing.assert_close(states[True], states[False], rtol=1e-4, atol=1e-5)  # float32 in another order


def test_a_single_sample_left_over_does_not_reach_batch_norm(tiny, tmp_path):
    _, history = tiny.run(tmp_path, Training(epochs=1, batch_size=16), data=tiny.dataset(train=49))
    assert history.rows[0]["step"] == 3


def test_tensorboard_is_written_when_asked(tiny, tmp_path):
    _, history = tiny.run(tmp_path, replace(tiny.OPTIONS, epochs=2, tensorboard=True))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("val_loss")] == [
        (row["epoch"], pytest.approx(row["val_loss"], rel=1e-6))
        for row in history.rows  # events are float32
    ]
    tiny.run(tmp_path / "without", replace(tiny.OPTIONS, epochs=1))
    assert not (tmp_path / "without" / "tensorboard").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_epoch(tiny, tmp_path):
    options = replace(tiny.OPTIONS, optimizer=SGD(lr=0.1), epochs=3)
    data = tiny.dataset("regression")

    class Poison:
        def on_step(self, epoch, step, steps):
            if (epoch, step) == (2, 2):
                data.train.inputs.fill_(float("nan"))

        def on_epoch(self, row):
            pass

    message = r"training, epoch 2, step 3: the loss is nan; lower optimizer.lr, set clip_norm"
    with pytest.raises(ConvergenceError, match=message):
        tiny.run(tmp_path, options, data=data, progress=Poison())
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert [row["epoch"] for row in state["rows"]] == [1]
    assert all(tensor.isfinite().all() for tensor in state["trainer"]["network"].values())


def test_weights_ruined_by_the_last_step_are_not_kept(tiny, tmp_path):
    options = Training(epochs=1, batch_size=48, optimizer=SGD(lr=1e38))
    with pytest.raises(ConvergenceError, match=r"training: val_loss is (nan|inf); lower optimizer.lr"):
        tiny.run(tmp_path, options, net=tiny.network(norm=False))
    assert not (tmp_path / "state.pt").exists()


REFUSED = [
    ({"precision": "float16"}, "precision: float16 needs --device cuda"),
    ({"loss": MeanAbsolute()}, "loss: mae was given, but the data set is for classification; use cross-entropy"),
    ({"monitor": "mae"}, "monitor: mae was given, but the data set is for classification; use accuracy or loss"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_refuses_what_does_not_fit(tiny, tmp_path, change, message):
    with pytest.raises(RecipeError, match=message):
        tiny.run(tmp_path, replace(tiny.OPTIONS, **change))


def test_set_determinism_seeds_and_asks_for_it(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        set_determinism(5, strict=True)
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        one = torch.rand(4)
        set_determinism(5)
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.equal(one, torch.rand(4))
    finally:
        torch.use_deterministic_algorithms(False)
