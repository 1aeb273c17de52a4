"""Reconstruction as a pass: what it gives equals least squares on samples, and the cut net equals the masked one."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from compresskit.errors import ConvergenceError, RecipeError
from compresskit.graph.capture import capture
from compresskit.graph.counting import count
from compresskit.graph.trace import trace
from compresskit.numerics.group_lasso.newton import Newton
from compresskit.passes.moments import collect, gather_from
from compresskit.passes.reconstruct.budget import SizeModel
from compresskit.passes.reconstruct.network import reconstruct, reconstruct_model
from compresskit.passes.reconstruct.options import Backward, GroupLasso, LowRank, Reconstruct, Target
from compresskit.passes.reconstruct.readers import plan
from compresskit.passes.reconstruct.targets import Judge
from tests.graph.nets import INPUTS, Depthwise, Plain, Residual, Shared, batch, make

LASSO = GroupLasso(solver=Newton(tol=1e-10))


class Dense(nn.Module):
    """A chain of linear layers behind a flattened map."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 5, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(5)
        self.fc1, self.fc2 = nn.Linear(80, 12), nn.Linear(12, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        x = torch.relu(self.norm2(self.conv2(x)))
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))


INPUTS[Dense] = (2, 8, 8)


def images(kind, count=400):
    x = batch(kind, count)
    return [(x[: count // 2], None), (x[count // 2 :], None)]


def run(kind, options, judge=None, count=400):
    network = trace(make(kind))
    loader = images(kind, count)

    def gather(student, requests, teacher):
        sums = {request.name: request.zeros("cpu") for request in requests}
        collect(student, requests, loader, sums, teacher=teacher)
        return {name: total.finish() for name, total in sums.items()}

    return network, reconstruct(network, gather, options, INPUTS[kind], judge)


def outputs(network, kind):
    with torch.no_grad():
        return network(batch(kind, 40, seed=5))


CASES = {
    "backward": Reconstruct(keep="60%"),
    "group lasso": Reconstruct(keep="60%", selection=LASSO),
    "shrunken": Reconstruct(keep="60%", selection=LASSO, debias=False),
    "lambda": Reconstruct(lam=0.5, lam_scale="energy"),
    "error": Reconstruct(error=0.05),
    "top-down": Reconstruct(keep="60%", chaining="top-down"),
    "bottom-up": Reconstruct(keep="60%", chaining="bottom-up"),
    "input sampler": Reconstruct(keep="50%", input_sampler=True),
    "dynamic": Reconstruct(keep="60%", sampler="dynamic"),
    "static": Reconstruct(keep="60%", sampler="static"),
    "size": Reconstruct(target=Target(size="60%")),
}


@pytest.mark.parametrize("kind", [Plain, Dense, Residual, Depthwise])
@pytest.mark.parametrize("case", CASES)
def test_the_cut_net_equals_the_masked_one_and_is_smaller(case, kind):
    network, found = run(kind, CASES[case])
    expected = outputs(found.masked, kind)
    torch.testing.assert_close(outputs(found.network, kind), expected, rtol=1e-9, atol=1e-9)
    assert count(found.network, INPUTS[kind]).parameters < count(network, INPUTS[kind]).parameters
    assert count(found.network, INPUTS[kind]).macs < count(network, INPUTS[kind]).macs
    assert all(1 <= row.kept <= row.inputs for row in found.rows)
    assert any(row.kept < row.inputs for row in found.rows)
    assert {row.name for row in found.rows}.isdisjoint(plan(network, INPUTS[kind], CASES[case]).skipped)


def test_nothing_is_lost_where_all_is_kept():
    network, found = run(Dense, Reconstruct(keep="100%"))
    torch.testing.assert_close(outputs(found.network, Dense), outputs(network, Dense), rtol=1e-6, atol=1e-6)
    assert all(row.unexplained < 1e-9 for row in found.rows)


def layer_data(network, layer, kind):
    """Patches that a layer reads and its outputs, as rows, from samples."""
    (node,) = (n for n in network.graph.nodes if n.op == "call_module" and n.target == layer)
    seen = capture(network, [node.args[0].name, node.name])
    module = network.get_submodule(layer)
    with torch.no_grad():
        x, y = seen(torch.cat([inputs for inputs, _ in images(kind)]))
        if isinstance(module, nn.Conv2d):
            x = nn.functional.unfold(x, module.kernel_size, module.dilation, module.padding, module.stride)
            x, y = x.transpose(1, 2).flatten(0, 1), y.flatten(2).transpose(1, 2).flatten(0, 1)
    return x.numpy(), y.numpy()


@pytest.mark.parametrize(("layer", "taps"), [("conv2", 9), ("fc1", 16), ("fc2", 1)])
def test_weights_are_least_squares_on_the_samples(layer, taps):
    network, found = run(Dense, Reconstruct(keep={layer: "50%"}))
    (row,) = found.rows
    x, y = layer_data(network, layer, Dense)
    weight = found.masked.get_submodule(layer).weight.detach().flatten(1).numpy()
    kept = np.flatnonzero(np.abs(weight).sum(0))
    assert len(kept) == row.kept * taps
    assert len(set(kept // taps)) == row.kept  # whole channels
    design = np.column_stack([x[:, kept], np.ones(len(x))])
    solution = np.linalg.lstsq(design, y, rcond=None)[0]
    least = np.square(y - design @ solution).sum() / len(y)
    centred, target, found = x[:, kept] - x[:, kept].mean(0), y - y.mean(0), weight[:, kept]
    slope = (target - centred @ found.T).T @ centred / len(x)  # lambda W, of the normal equations with a ridge
    ridge = (slope * found).sum() / np.square(found).sum()
    np.testing.assert_allclose(slope, ridge * found, atol=1e-6 * np.abs(target.T @ centred).max() / len(x))
    if len(x) > 50 * len(kept):
        np.testing.assert_allclose(found, solution[:-1].T, rtol=1e-6, atol=1e-8)
        assert row.error == pytest.approx(least, rel=1e-6)
    else:  # few samples for so many inputs
        assert ridge > 0
        assert row.error > least
    assert row.variance == pytest.approx(np.square(y - y.mean(0)).sum() / len(y), rel=1e-9)
    before = network.get_submodule(layer).weight.shape[1]
    assert row.weight_shape_before[1] == before


def test_weights_that_are_not_debiased_are_the_group_lassos_own():
    shrunken, refitted = (
        run(Dense, Reconstruct(lam=0.01, lam_scale="energy", selection=LASSO, debias=debias))[1]
        for debias in (False, True)
    )
    for row, other in zip(shrunken.rows, refitted.rows, strict=True):
        assert (row.kept, row.rank) == (other.kept, None)
        norms = [r.masked.get_submodule(row.name).weight.norm() for r in (shrunken, refitted)]
        assert norms[0] < norms[1]
        assert row.error > other.error * (1 + 1e-6)


def test_a_bias_that_a_layer_has_no_place_for_goes_to_the_batch_norm():
    network, found = run(Dense, Reconstruct(keep={"conv2": 2}))
    assert found.network.get_submodule("conv2").bias is None
    x = torch.cat([inputs for inputs, _ in images(Dense)])
    with torch.no_grad():
        means = [
            capture(net, ["conv2"])(x)[0].mean((0, 2, 3)) - net.get_submodule("norm2").running_mean
            for net in (network, found.masked)
        ]
    torch.testing.assert_close(means[1], means[0])
    moved = found.network.get_submodule("norm2").running_mean - network.get_submodule("norm2").running_mean
    assert moved.abs().max() > 1e-6


def test_top_down_makes_up_for_the_layers_before_it():
    """Each layer is fitted to the original's outputs from what the compressed layers before it give."""
    network, found = run(Plain, Reconstruct(keep="50%", chaining="top-down"))
    masked = found.masked
    x = torch.cat([inputs for inputs, _ in images(Plain)])
    (node,) = (n for n in network.graph.nodes if n.op == "call_module" and n.target == "fc2")
    with torch.no_grad():
        (read,), (target,) = capture(masked, [node.args[0].name])(x), capture(network, [node.name])(x)
    weight = masked.get_submodule("fc2").weight.detach()
    kept = weight.abs().sum(0) > 0
    design = torch.cat([read[:, kept], torch.ones(len(read), 1)], 1)
    solution = torch.linalg.lstsq(design, target).solution
    torch.testing.assert_close(weight[:, kept], solution[:-1].T, rtol=1e-6, atol=1e-8)
    _, parallel = run(Plain, Reconstruct(keep="50%"))
    (row,) = (row for row in found.rows if row.name == "fc2")
    with torch.no_grad():
        residual = (target - masked(x)).square().sum(1).mean()
        other = (target - parallel.masked(x)).square().sum(1).mean()
    assert row.error == pytest.approx(float(residual), rel=1e-6)
    assert float(residual) < float(other)


def test_bottom_up_counts_only_outputs_that_survive():
    _, found = run(Dense, Reconstruct(keep="50%", chaining="bottom-up"))
    _, parallel = run(Dense, Reconstruct(keep="50%"))
    rows, others = ({row.name: row for row in r.rows} for r in (found, parallel))
    assert rows["fc1"].variance < others["fc1"].variance  # six of its twelve outputs are read by fc2
    assert rows["fc1"].weight_shape[0] == 6
    assert rows["fc2"].variance == pytest.approx(others["fc2"].variance)
    assert rows["fc1"].error <= others["fc1"].error * (1 + 1e-9)


def test_static_cuts_what_all_readers_drop_and_dynamic_selects():
    _, static = run(Residual, Reconstruct(keep="50%", sampler="static"))
    (shared,) = {row.site for row in static.rows if "block2.conv1" in row.site}
    assert {row.name for row in static.rows if row.site == shared} == {
        "block1.conv1",
        "block2.conv1",
        "block2.shortcut",
    }
    assert static.network.get_submodule("stem").weight.shape[0] == 2
    assert static.selection_bits == 0
    _, dynamic = run(Residual, Reconstruct(keep="50%"))
    rows = {row.name: row for row in dynamic.rows}
    assert rows["block2.conv1"].sampler == "dynamic"
    assert rows["block1.conv2"].sampler == "static"
    assert dynamic.network.get_submodule("block2.conv1").weight.shape[1] == 2
    assert dynamic.selection_bits > 0
    assert "index_select" in str(dynamic.network.graph)


def test_targets_are_reached_and_no_more():
    for goal in ("size", "params", "macs"):
        network, found = run(Dense, Reconstruct(target=Target(**{goal: "50%"}), input_sampler=True))
        before, after = count(network, (2, 8, 8)), count(found.network, (2, 8, 8))
        shares = {
            "size": (after.parameters * 32 + found.selection_bits) / (before.parameters * 32),
            "params": after.parameters / before.parameters,
            "macs": after.macs / before.macs,
        }
        assert 0.35 < shares[goal] <= 0.5  # layers of six channels allow no finer steps


class Bare(nn.Module):
    """Layers without biases: one before a batch norm whose shape is looked at first, the others before none."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv3, self.fc = nn.Conv2d(8, 40, 1, bias=False), nn.Linear(40, 4, bias=False)

    def forward(self, x):
        x = self.conv2(torch.relu(self.norm(self.conv(x))))
        torch._assert(x.ndim == 4, "maps alone")
        x = torch.relu(self.conv3(torch.relu(self.norm2(x))))
        return self.fc(x.mean((2, 3)))


INPUTS[Bare] = (2, 8, 8)


@pytest.mark.parametrize("part", ["60%", "75%", "90%"])
def test_biases_that_layers_get_count_and_those_that_norms_take_do_not(part):
    network, found = run(Bare, Reconstruct(target=Target(params=part)))
    before, after = count(network, INPUTS[Bare]), count(found.network, INPUTS[Bare])
    assert after.parameters <= float(part.strip("%")) / 100 * before.parameters
    got = [name for name in ("conv", "conv2", "conv3", "fc") if found.network.get_submodule(name).bias is not None]
    assert got
    assert "conv2" not in got


def test_a_target_out_of_reach_is_refused_before_any_moments():
    def gather(*arguments):
        raise AssertionError("moments were taken")

    options = Reconstruct(target=Target(size="1%"))
    with pytest.raises(RecipeError, match=r"target.size: 1.0% cannot be reached: .* remain"):
        reconstruct(trace(make(Dense)), gather, options, (2, 8, 8))


def test_a_judge_has_a_say_and_decides_on_accuracy():
    network = trace(make(Dense))
    x = batch(Dense, 200, seed=9)
    with torch.no_grad():
        expected = network(x)
        middle = expected.median(0).values  # so that every class is someone's

    def loss(candidate):
        with torch.no_grad():
            return float((candidate(x) - expected).square().sum(1).mean())

    def accuracy(candidate):
        with torch.no_grad():
            same = (candidate(x) - middle).argmax(1) == (expected - middle).argmax(1)
            return float(same.double().mean())

    def squared(found, other):
        return (found - other).square().sum(1).mean()

    judge = Judge(loss, accuracy, squared, lambda: x.split(60))
    sizes = []
    for points in (2.0, 15.0):
        _, found = run(Dense, Reconstruct(target=Target(accuracy_drop=points)), judge)
        assert accuracy(found.masked) >= 1 - points / 100
        sizes.append(count(found.network, (2, 8, 8)).parameters)
    assert sizes[1] < sizes[0] < count(network, (2, 8, 8)).parameters
    _, judged = run(Dense, Reconstruct(target=Target(size="50%")), judge)
    _, blind = run(Dense, Reconstruct(target=Target(size="50%")))
    assert loss(judged.masked) <= loss(blind.masked) * (1 + 1e-9)

    def first(found, other):
        return (found - other)[:, 0].square().mean()

    def loss_of_first(candidate):
        with torch.no_grad():
            return float(first(candidate(x), expected))

    small = Reconstruct(target=Target(size="25%"))
    _, biased = run(Dense, small, Judge(loss_of_first, None, first, lambda: [x]))
    _, blind = run(Dense, small)
    assert loss_of_first(biased.masked) < 0.99 * loss_of_first(blind.masked)


def test_a_site_that_keeps_all_is_left_as_it_is():
    """Bit for bit, whatever a fit to few images would make of it."""
    network, found = run(Dense, Reconstruct(keep={"fc1": "50%", "conv2": "100%", "fc2": "100%"}))
    rows = {row.name: row for row in found.rows}
    for name in ("conv2", "fc2"):
        assert torch.equal(found.masked.get_submodule(name).weight, network.get_submodule(name).weight)
        assert (rows[name].error, rows[name].rank) == (0.0, None)
        assert rows[name].variance > 0
    assert rows["fc1"].error > 0


def test_progress_is_told_by_the_work_of_each_step():
    """Every step that was announced ends; a layer counts by the cube of its inputs."""
    told = {}

    def start(label, work):
        told[label] = [list(work), 0]

        def done():
            told[label][1] += 1

        return done

    network, loader = trace(make(Dense)), images(Dense)
    judge = Judge(lambda c: 0.0, None, lambda a, b: (a - b).square().mean(), lambda: batch(Dense, 50).split(20))
    options = Reconstruct(target=Target(size="50%"))
    reconstruct(network, gather_from(loader), options, (2, 8, 8), judge, start=start)
    assert {label: len(work) for label, (work, _) in told.items()} == {label: n for label, (_, n) in told.items()}
    assert told["inputs of each site"][0] == [54.0**3, 80.0**3, 12.0**3]  # conv2, fc1, fc2
    fits = zip(told["fits of each site alone"][0], told["inputs of each site"][0], strict=True)
    assert len(told["losses of each site alone"][0]) == 3 * sum(work / cube for work, cube in fits)


def test_a_drop_of_accuracy_needs_a_judge():
    with pytest.raises(RecipeError, match="accuracy_drop: it takes a classifier and held-out images"):
        run(Dense, Reconstruct(target=Target(accuracy_drop=1.0)))


def test_a_penalty_that_would_empty_a_layer_is_held():
    _, found = run(Dense, Reconstruct(lam=1e9, min_channels=2))
    assert {row.kept for row in found.rows} == {2}
    assert all(row.held for row in found.rows)
    assert any("lambda 1e+09 would leave fewer than 2; held at min_channels" in note for note in found.notes)
    _, found = run(Dense, Reconstruct(keep=1, min_channels=3))
    assert {row.kept for row in found.rows} == {3}
    assert all(row.held for row in found.rows)


def test_kept_numbers_are_those_asked_for():
    for selection in (Backward(), LASSO):
        _, found = run(Dense, Reconstruct(keep={"fc2": 7, "conv2": "50%"}, selection=selection))
        assert {row.name: row.kept for row in found.rows} == {"conv2": 3, "fc2": 7}


def test_error_is_the_smallest_layer_within_it():
    for selection in (Backward(), LASSO):
        _, found = run(Dense, Reconstruct(error={"fc2": 0.1}, selection=selection))
        (row,) = found.rows
        assert row.unexplained <= 0.1
        _, one_less = run(Dense, Reconstruct(keep={"fc2": row.kept - 1}, selection=selection))
        assert one_less.rows[0].unexplained > 0.1


def test_certificates_are_reported_and_not_converging_is_not_hidden():
    _, found = run(Dense, Reconstruct(keep="50%", selection=LASSO))
    assert all(row.gap <= 1e-10 and row.converged and row.lam > 0 for row in found.rows)
    hasty = GroupLasso(solver=Newton(tol=1e-14, max_iter=1))
    _, found = run(Dense, Reconstruct(lam=1e-3, selection=hasty))
    assert any("stopped at a relative gap" in note for note in found.notes)
    with pytest.raises(ConvergenceError, match="stopped at a relative gap"):
        run(Dense, Reconstruct(lam=1e-3, selection=hasty, on_no_convergence="fail"))


def test_curves_show_the_trade_off():
    _, found = run(Dense, Reconstruct(keep="50%"))
    for row in found.rows:
        curve = found.curves[row.site]
        assert curve.kept == tuple(range(row.inputs, 0, -1))
        assert all(later >= earlier for earlier, later in zip(curve.errors, curve.errors[1:], strict=False))
        assert curve.errors[row.inputs - row.kept] == pytest.approx(row.unexplained, rel=1e-3, abs=1e-6)  # the ridge


def test_low_rank_factors_lose_no_more_than_allowed_and_only_where_smaller():
    plain = run(Dense, Reconstruct(keep="80%"))[1]
    network, found = run(Dense, Reconstruct(keep="80%", low_rank=LowRank(error=0.2)))
    factorised = [row for row in found.rows if row.low_rank]
    assert factorised
    assert count(found.network, (2, 8, 8)).parameters < count(plain.network, (2, 8, 8)).parameters
    x = torch.cat([inputs for inputs, _ in images(Dense)])
    row = factorised[0]
    (node,) = (n for n in plain.network.graph.nodes if n.op == "call_module" and n.target == row.name)
    (behind,) = (n for n in found.network.graph.nodes if n.op == "call_module" and n.target == f"{row.name}.1")
    with torch.no_grad():
        (a,), (b,) = capture(plain.network, [node.name])(x), capture(found.network, [behind.name])(x)
    channel_first = a.transpose(0, 1).flatten(1)
    variance = float(channel_first.var(1, correction=0).sum())
    lost = float((a - b).transpose(0, 1).flatten(1).square().mean(1).sum())
    assert 0 < lost <= 0.2 * variance * (1 + 1e-6)


def test_factors_that_would_be_larger_are_left_out():
    _, found = run(Dense, Reconstruct(keep="80%", low_rank=LowRank(error=1e-12)))
    assert not any(row.low_rank for row in found.rows)
    assert found.network is found.cut


@pytest.mark.parametrize("kind", [Plain, Dense, Depthwise])
@pytest.mark.parametrize("seed", range(3))
def test_the_size_model_predicts_what_is_left(kind, seed):
    generator = torch.Generator().manual_seed(seed)
    options = Reconstruct(keep="100%", input_sampler=True)
    network = trace(make(kind))
    made = plan(network, INPUTS[kind], options)
    model = SizeModel(network, made, INPUTS[kind])
    kept = [int(torch.randint(1, site.n_groups + 1, (1,), generator=generator)) for site in made.sites]
    counts = {site.readers[0].layer: count for site, count in zip(made.sites, kept, strict=True)}
    _, found = run(kind, Reconstruct(keep=counts, input_sampler=True))
    left = count(found.network, INPUTS[kind])
    amounts = torch.tensor([kept], dtype=torch.float64)
    assert float(model.cost("params")(amounts)) == pytest.approx(left.parameters)
    assert float(model.cost("macs")(amounts)) == pytest.approx(left.macs)
    assert float(model.cost("size")(amounts)) == pytest.approx(32 * left.parameters + found.selection_bits)


def test_a_lambda_in_units_of_energy():
    _, found = run(Dense, Reconstruct(lam={"fc2": 0.05}, lam_scale="energy", selection=LASSO))
    (row,) = found.rows
    _, same = run(Dense, Reconstruct(lam={"fc2": 0.05 * row.variance}, selection=LASSO))
    assert torch.equal(*(r.masked.get_submodule("fc2").weight == 0 for r in (found, same)))
    assert same.rows[0].lam == pytest.approx(row.lam * row.variance)


def test_workers_choose_the_same():
    _, alone = run(Dense, Reconstruct(keep="50%"))
    _, together = run(Dense, Reconstruct(keep="50%", workers=2))
    assert [(r.name, r.kept, r.error) for r in alone.rows] == [(r.name, r.kept, r.error) for r in together.rows]


def test_what_is_left_alone_says_why():
    skipped = plan(trace(make(Depthwise)), INPUTS[Depthwise], Reconstruct(keep="50%")).skipped
    assert skipped == {"conv1": "it reads the network's input; input_sampler: true thins that, too"}
    chosen = Reconstruct(keep={"fc2": "50%"})
    assert plan(trace(make(Plain)), INPUTS[Plain], chosen).skipped["fc1"] == "no selector of the amounts names it"
    some = Reconstruct(keep="50%", layers=("block2.conv1", "block1.conv2"), sampler="static")
    reason = plan(trace(make(Residual)), INPUTS[Residual], some).skipped["block2.conv1"]
    assert "reads the same activation; sampler: dynamic can select its inputs" in reason


def test_refusals():
    with pytest.raises(RecipeError, match="no layer can be thinned .*fc: it is called 2 times"):
        plan(trace(make(Shared)), INPUTS[Shared], Reconstruct(keep="50%", layers=("fc",)))
    with pytest.raises(RecipeError, match="layer selector 'conv9'"):
        plan(trace(make(Plain)), INPUTS[Plain], Reconstruct(keep="50%", layers=("conv9",)))
    with pytest.raises(RecipeError, match="drop the same inputs of the same activation, but were told"):
        run(Residual, Reconstruct(keep={"re:.*": 2, "block2.conv1": 3}, sampler="static"))


def test_nan_in_the_activations_is_an_error():
    network = make(Dense)
    with torch.no_grad():
        network.fc1.weight[0, 0] = torch.nan
    with pytest.raises(ConvergenceError, match="moments are not finite; check the checkpoint and the data"):
        reconstruct_model(network, images(Dense), keep="50%")


def test_the_python_entry_leaves_the_model_alone():
    model = make(Dense)
    before = copy.deepcopy(model.state_dict())
    smaller, rows = reconstruct_model(model, images(Dense), keep="50%")
    assert {row.name: row.kept for row in rows} == {"conv2": 3, "fc1": 3, "fc2": 6}
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert smaller(batch(Dense)).shape == (6, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give one of lam, keep, error and target, which say how much is kept; not 0"),
        ({"lam": 1.0, "keep": 3}, "not 2"),
        ({"lam": 1.0, "selection": Backward()}, "backward knows no lambda"),
        ({"keep": "50%", "debias": False}, "only the group lasso has weights of its own"),
        ({"keep": "half"}, "'half' is no share"),
    ],
)
def test_options_that_contradict_each_other(options, message):
    with pytest.raises(ValueError, match=message):
        Reconstruct(**options)
    for wrong in ({}, {"size": "40%", "macs": "40%"}, {"size": "0.4"}):
        with pytest.raises(ValueError, match="give one of size|is no share"):
            Target(**wrong)


def test_float32_nets_stay_float32():
    network = trace(make(Dense).float())
    loader = [(inputs.float(), None) for inputs, _ in images(Dense)]
    smaller, _ = reconstruct_model(network, loader, keep="50%", low_rank=LowRank(error=0.3))
    assert {p.dtype for p in smaller.parameters()} == {torch.float32}


@pytest.mark.parametrize("chaining", ["parallel", "bottom-up", "top-down"])
@pytest.mark.parametrize("debias", [True, False])
def test_a_target_of_the_group_lasso_is_met_to_a_channel(chaining, debias):
    """However few lambdas the path has, and for the moments of the chaining that is used."""
    lasso = GroupLasso(solver=Newton(tol=1e-10), points=6)
    options = Reconstruct(target=Target(params="70%"), selection=lasso, chaining=chaining, debias=debias)
    network, found = run(Dense, options)
    before, after = (count(net, INPUTS[Dense]).parameters for net in (network, found.network))
    dearest = 5 * 9 + 12 * 16  # parameters of an input of fc1, the largest of all, with those that make it
    assert 0 <= 0.7 * before - after <= dearest


@pytest.mark.parametrize("chaining", ["parallel", "bottom-up", "top-down"])
def test_uncentred_moments_are_least_squares_through_zero_and_keep_the_biases(chaining):
    options = Reconstruct(keep={"fc1": "60%"}, layers=("fc1",), centred=False, chaining=chaining)
    network, found = run(Plain, options, count=8000)  # more than 50 for each input, which need no ridge
    x = torch.cat([inputs for inputs, _ in images(Plain, 8000)])
    (row,) = found.rows
    node = next(node for node in network.graph.nodes if node.target == "fc1")
    inputs = capture(network, [node.args[0].name])(x)[0].detach().numpy()
    layer = found.masked.get_submodule("fc1")
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    own = network.get_submodule("fc1")
    np.testing.assert_allclose(bias, own.bias.detach().numpy(), atol=1e-12)
    kept = np.abs(weight).sum(0) > 0
    assert 0 < kept.sum() < len(kept)
    target = inputs @ own.weight.detach().numpy().T
    expected = np.linalg.lstsq(inputs[:, kept], target, rcond=None)[0].T
    np.testing.assert_allclose(weight[:, kept], expected, rtol=1e-5, atol=1e-7)
    lost = np.square(target - inputs[:, kept] @ expected.T).sum(1).mean()
    assert row.error == pytest.approx(lost, rel=1e-5, abs=1e-12)
    centred = run(Plain, replace(options, centred=True), count=8000)[1].rows[0]
    assert centred.error <= row.error * (1 + 1e-9)
