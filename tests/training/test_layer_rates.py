"""Layerwise rates in training: whose parameters get them, the steps that they make, and what a resumed run keeps."""

import math
from dataclasses import replace

import pytest
import torch
from torch import fx, nn
from torchvision.models.swin_transformer import ShiftedWindowAttention

from compresskit.graph.trace import trace
from compresskit.graph.weights import weights_of
from compresskit.passes.spectra.weights import spectra
from compresskit.training.layer_rates import LayerRates, LayerwiseRates, owners
from compresskit.training.optimization.optimizers import SGD, parameter_groups
from compresskit.training.optimization.schedules import Step
from compresskit.training.seeds import epoch_seed


class Dense(nn.Module):
    """A norm behind its layer, one before it, and one behind a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.middle = nn.BatchNorm2d(7)
        self.second, self.last = nn.Conv2d(7, 5, 3), nn.BatchNorm2d(5)
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        y = torch.cat([x, torch.relu(self.norm(self.first(x)))], 1)
        y = torch.relu(self.last(self.second(torch.relu(self.middle(y)))))
        return self.head(y.mean((2, 3)))


def test_norms_and_biases_follow_their_layer():
    net = fx.symbolic_trace(Dense())
    names = {parameter: name for name, parameter in net.named_parameters()}
    found = {names[parameter]: layer for parameter, layer in owners(net).items()}
    assert found == {
        **dict.fromkeys(("first.weight", "first.bias", "norm.weight", "norm.bias"), "first"),
        **dict.fromkeys(("second.weight", "second.bias", "middle.weight", "middle.bias"), "second"),
        **dict.fromkeys(("last.weight", "last.bias"), "second"),
        **dict.fromkeys(("head.weight", "head.bias"), "head"),
    }


def rates(**options) -> LayerwiseRates:
    return LayerwiseRates(**{"map": "linear", "definitions": "document", "metric": "stable_rank", **options})


def test_steps_are_those_of_a_plain_loop(tiny, tmp_path, monkeypatch):
    """Each layer's parameters with the schedule's rate times its factor, measured before each epoch."""
    monkeypatch.setattr(
        "compresskit.passes.spectra.matrices._unfit", lambda *_: None
    )  # tiny layers have few eigenvalues
    options = replace(
        tiny.OPTIONS,
        epochs=2,
        optimizer=SGD(lr=0.1, momentum=0.5, weight_decay=0.01),
        schedule=Step(step_size=1, gamma=0.5),
        layerwise_rates=rates(weight_decay=True),
    )
    net, data = tiny.network(dropout=0.0), tiny.dataset()
    _, history = tiny.run(tmp_path, options, net=net, data=data)
    plain = tiny.network(dropout=0.0)
    layers = {layer: [] for layer in owners(plain).values()}
    for parameter, layer in owners(plain).items():
        layers[layer].append(parameter)
    optimizer = torch.optim.SGD([{"params": own} for own in layers.values()], lr=0.1, momentum=0.5)
    for epoch in range(2):
        rows, _ = spectra(weights_of(plain)[0], options.layerwise_rates.spectra(["stable_rank"]))
        measured = {row.name: row.stable_rank for row in rows}
        share = {name: len(measured) * value / sum(measured.values()) for name, value in measured.items()}
        for group, layer in zip(optimizer.param_groups, layers, strict=True):
            group["lr"], group["weight_decay"] = 0.1 * 0.5**epoch * share[layer], 0.01 * share[layer]
            assert history.rows[epoch][f"rate {layer}"] == pytest.approx(share[layer], rel=1e-4)
            assert history.rows[epoch][f"metric {layer}"] == pytest.approx(measured[layer], rel=1e-4)
        for inputs, targets in data.train.batches(options.batch_size, torch.device("cpu"), seed=epoch_seed(3, epoch)):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(plain(inputs), targets).backward()
            optimizer.step()
    assert len(set(share.values())) > 1
    # 1e-5: float32, and the fused step rounds in another order
    torch.testing.assert_close(net.state_dict(), plain.state_dict(), rtol=1e-4, atol=1e-5)


def test_a_resumed_run_keeps_its_rates_between_measurements(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("compresskit.passes.spectra.matrices._unfit", lambda *_: None)
    options = replace(tiny.OPTIONS, epochs=4, layerwise_rates=rates(every=3, noise="normal-alpha"))
    whole, _ = tiny.run(tmp_path / "whole", options)
    measured = []
    with pytest.raises(KeyboardInterrupt):
        tiny.run(tmp_path / "cut", options, progress=Stopper(measured))
    resumed, history = tiny.run(tmp_path / "cut", options, resume=True)
    assert all(torch.equal(tensor, resumed.state_dict()[name]) for name, tensor in whole.state_dict().items())
    columns = [key for key in history.rows[0] if key.startswith("rate ")]
    assert columns
    assert all(history.rows[0][key] == history.rows[2][key] for key in columns)
    assert any(history.rows[2][key] != history.rows[3][key] for key in columns)


class Stopper:
    """Interrupts the run after its second epoch."""

    def __init__(self, seen: list) -> None:
        self.seen = seen

    def on_step(self, epoch: int, step: int, steps: int) -> None: ...

    def on_epoch(self, row: dict) -> None:
        self.seen.append(row)
        if len(self.seen) == 2:
            raise KeyboardInterrupt


def test_layers_without_the_metric_keep_the_schedules_rate(tiny, tmp_path):
    _, history = tiny.run(tmp_path, replace(tiny.OPTIONS, epochs=1, layerwise_rates=LayerwiseRates()))
    (row,) = history.rows
    for key in (key for key in row if key.startswith("metric ")):
        if math.isnan(row[key]):
            assert row[key.replace("metric ", "rate ")] == 1
    assert row["spectra_seconds"] > 0


def test_what_contradicts_itself_is_refused():
    with pytest.raises(ValueError, match="wrong order"):
        LayerwiseRates(bounds=(2.0, 1.0))
    with pytest.raises(ValueError, match="use map: linear"):
        LayerwiseRates(noise="normal-rate")


@pytest.mark.parametrize(
    ("options", "given"),
    [({"metric": "entropy"}, "entropy"), ({"metric": "log_norm"}, "log_norm"), ({"inverse": True}, "inverse of alpha")],
)
def test_a_map_outside_of_its_domain_is_refused(options, given):
    with pytest.raises(ValueError, match=rf"map: log2 is 0 and no rate for values up to 1, which .*{given} can have"):
        LayerwiseRates(map="log2", **options)
    LayerwiseRates(map="log2", metric="stable_rank")


def test_an_orthogonal_layer_keeps_the_schedules_rate(tiny, tmp_path):
    """Its exponent was 1e8 by rounding, and its rate 1e-8 of the others'."""
    network = tiny.network()
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    nn.init.orthogonal_(layers[0].weight)
    optimizer = torch.optim.SGD(
        [{"params": [layer.weight], "layer": name, "weight_decay": 0.0}
         for name, layer in network.named_modules() if isinstance(layer, nn.Linear)], lr=0.1
    )  # fmt: skip
    rates = LayerRates(network, LayerwiseRates(map="linear", inverse=True), 0.0, 1)
    rates.measure(optimizer, 0, 0.1, 0, torch.device("cpu"))
    first = optimizer.param_groups[0]
    assert math.isnan(first["metric"])
    assert first["factor"] == 1.0


class Block(nn.Module):
    """Attention as one module, in windows, and a layer whose weight is an argument, each behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(8), nn.LayerNorm(8), nn.LayerNorm(8)
        self.one = nn.MultiheadAttention(8, 2, batch_first=True)
        self.cross = nn.MultiheadAttention(8, 2, kdim=6, vdim=6, batch_first=True)
        self.windows, self.called = ShiftedWindowAttention(8, [2, 2], [0, 0], 2), nn.Linear(8, 8)
        self.last = nn.RMSNorm(8)

    def forward(self, x):
        y = self.norm1(x.flatten(1, 2))
        x = x + self.one(y, y, y)[0].unflatten(1, (4, 4))
        x = x + self.windows(self.norm2(x))
        y = nn.functional.linear(self.norm3(x), self.called.weight, self.called.bias)
        z = y.flatten(1, 2)
        return self.last(self.cross(z, z[..., :6], z[..., :6])[0])


def test_attention_as_one_module_has_layers_of_its_own():
    net = trace(Block())
    names = {parameter: name for name, parameter in net.named_parameters()}
    found = {names[parameter]: layer for parameter, layer in owners(net).items()}
    found.pop("windows.relative_position_bias_table", None)
    assert found == {
        **dict.fromkeys(("norm1.weight", "norm1.bias", "one.in_proj_weight", "one.in_proj_bias"), "one.in_proj"),
        **dict.fromkeys(("one.out_proj.weight", "one.out_proj.bias"), "one.out_proj"),
        **dict.fromkeys(("norm2.weight", "norm2.bias", "windows.qkv.weight", "windows.qkv.bias"), "windows.qkv"),
        **dict.fromkeys(("windows.proj.weight", "windows.proj.bias"), "windows.proj"),
        **dict.fromkeys(("norm3.weight", "norm3.bias", "called.weight", "called.bias"), "called"),
        **{f"cross.{part}_proj_weight": f"cross.{part}_proj" for part in "qkv"},
        "cross.in_proj_bias": "cross.q_proj",
        **dict.fromkeys(("cross.out_proj.weight", "cross.out_proj.bias", "last.weight"), "cross.out_proj"),
    }
    assert set(found.values()) <= {weight.name for weight in weights_of(net)[0]}


def test_the_rate_of_a_layer_within_attention_is_its_own():
    torch.manual_seed(0)
    net = trace(Block())
    optimizer = SGD(lr=0.1)(parameter_groups(net, decay_bias_and_norm=True, owners=owners(net)))
    LayerRates(net, rates(), 0.0, 1).measure(optimizer, 0, 0.1, 0, torch.device("cpu"))
    rows, _ = spectra(weights_of(net)[0], rates().spectra(["stable_rank"]))
    measured = {row.name: row.stable_rank for row in rows}
    for group in optimizer.param_groups:
        expected = (
            len(measured) * measured[group["layer"]] / sum(measured.values()) if group["layer"] in measured else 1
        )
        assert group["factor"] == pytest.approx(expected, rel=1e-6)
    layers = {group["layer"] for group in optimizer.param_groups}
    assert measured.keys() <= layers
    assert {"one.in_proj", "one.out_proj"} <= measured.keys()


WATCHED = LayerwiseRates(watch=("stable_rank", "entropy"), definitions="document")


def test_watching_changes_nothing_and_measures_behind_each_epoch(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("compresskit.passes.spectra.matrices._unfit", lambda *_: None)
    options = replace(tiny.OPTIONS, epochs=3, clip_norm=0.5)
    plain, _ = tiny.run(tmp_path / "plain", options)
    net, history = tiny.run(tmp_path / "watched", replace(options, layerwise_rates=WATCHED))
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in plain.state_dict().items())
    rows, _ = spectra(weights_of(net)[0], WATCHED.spectra(WATCHED.watch))
    assert len(rows) > 1
    for row in rows:
        for metric in WATCHED.watch:
            assert history.rows[-1][f"{metric} of {row.name}"] == pytest.approx(getattr(row, metric), rel=1e-6)
            assert history.rows[0][f"{metric} of {row.name}"] != history.rows[-1][f"{metric} of {row.name}"]
    assert not any(key.startswith(("rate ", "metric ")) for key in history.rows[0])


def test_what_is_watched_is_not_what_rates_follow(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("compresskit.passes.spectra.matrices._unfit", lambda *_: None)
    options = replace(tiny.OPTIONS, epochs=2, layerwise_rates=rates())
    plain, _ = tiny.run(tmp_path / "plain", options)
    both = replace(options, layerwise_rates=rates(watch=("entropy",)))
    net, history = tiny.run(tmp_path / "both", both)
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in plain.state_dict().items())
    assert {key.split()[0] for key in history.rows[0]} >= {"rate", "metric", "entropy"}


def test_watching_every_second_epoch_measures_the_last_one_too(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("compresskit.passes.spectra.matrices._unfit", lambda *_: None)
    options = replace(tiny.OPTIONS, epochs=5, layerwise_rates=replace(WATCHED, every=2))
    _, history = tiny.run(tmp_path, options)
    (key, *_) = (key for key in history.rows[0] if key.startswith("entropy of "))
    assert [math.isfinite(row[key]) for row in history.rows] == [False, True, False, True, True]


@pytest.mark.parametrize("changes", [{"map": "linear"}, {"inverse": True}, {"bounds": (0.5, 2.0)}])
def test_rates_that_watching_would_not_set_are_refused(changes):
    with pytest.raises(ValueError, match=f"it alone changes no rate, so drop {next(iter(changes))}"):
        LayerwiseRates(watch=("alpha",), **changes)
    assert LayerwiseRates(watch=("alpha",), metric="alpha", **changes).steers == "alpha"
    with pytest.raises(ValueError, match="names one twice"):
        LayerwiseRates(watch=("alpha", "alpha"))
