"""Spectra of whole networks against a plain loop, the rules for odd layers, and what is skipped."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from compresskit.graph.weights import Weight, chosen, weights_in, weights_of
from compresskit.numerics.spectra.power_law import search
from compresskit.passes.spectra.matrices import skipped
from compresskit.passes.spectra.options import Spectra
from compresskit.passes.spectra.spectrum import METRICS, Spectrum, regime_of
from compresskit.passes.spectra.weights import spectra


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.BatchNorm2d(16),
        nn.Conv2d(16, 24, 3, groups=4),
        nn.Conv1d(8, 40, 5),
        nn.ConvTranspose2d(12, 20, 2),
        nn.Embedding(50, 16),
        nn.Linear(60, 30),
        nn.Linear(30, 4),
    )


def taken(module: nn.Module, **options) -> dict[str, Spectrum]:
    return {row.name: row for row in spectra(weights_of(module)[0], Spectra(**options), threads=2)[0]}


def plain(weight: np.ndarray) -> np.ndarray:
    """Eigenvalues as WeightWatcher takes them of a layer: of each tap, halved."""
    if weight.ndim == 2:
        return np.linalg.svd(weight, compute_uv=False) ** 2
    taps = weight.reshape(*weight.shape[:2], -1)
    return np.concatenate([np.linalg.svd(tap, compute_uv=False) ** 2 / 2 for tap in np.moveaxis(taps, 2, 0)])


def test_every_layer_has_the_eigenvalues_of_its_taps():
    module = net()
    found = taken(module)
    assert list(found) == ["0", "2", "3", "4", "5", "6"]
    for name, row in found.items():
        weight = module.get_submodule(name).weight.detach().double().numpy()
        expected = np.sort(plain(weight))
        np.testing.assert_allclose(row.eigenvalues, expected, rtol=1e-9)
        law = search(expected)
        assert (row.alpha, row.D, row.num_pl_spikes) == (
            pytest.approx(law.alpha),
            pytest.approx(law.distance),
            law.tail,
        )
        assert row.norm == pytest.approx(expected.sum())
        assert row.frobenius == pytest.approx(math.sqrt(expected.sum()))
        assert row.spectral == pytest.approx(math.sqrt(expected.max()))
        assert row.log_frobenius == pytest.approx(math.log10(row.frobenius))
        assert row.log_spectral == pytest.approx(math.log10(row.spectral))
        assert row.alpha_weighted == pytest.approx(law.alpha * math.log10(expected.max()))
        assert row.log_alpha_norm == pytest.approx(math.log10((expected**law.alpha).sum()))
        assert row.ww_softrank == pytest.approx(row.max_rand_eval / expected.max())
        assert row.reliable == (law.tail >= 50)
        assert row.regime == regime_of(law.alpha)
        assert row.sv_max == pytest.approx(math.sqrt(expected.max()))
        taps = np.moveaxis(weight.reshape(*weight.shape[:2], -1), 2, 0)
        smallest = [np.linalg.svd(tap, compute_uv=False).min() for tap in taps]
        assert row.sv_min == pytest.approx(max(smallest) / (math.sqrt(2) if weight.ndim > 2 else 1))


def test_sides_and_taps_are_those_of_the_matrices():
    found = taken(net())
    sides = {name: (row.N, row.M, row.rf, row.num_evals) for name, row in found.items()}
    assert sides["0"] == (16, 3, 9, 27)
    assert sides["2"] == (24, 4, 9, 36)  # as stored: groups are rows of one matrix
    assert sides["3"] == (40, 8, 5, 40)
    assert sides["4"] == (20, 12, 4, 48)
    assert found["0"].Q == pytest.approx(16 / 3)


def test_convolutions_as_one_matrix_and_groups_apart():
    module = net()
    weight = module[0].weight.detach().double().numpy()
    whole = taken(module, convolutions="matrix")
    np.testing.assert_allclose(
        whole["0"].eigenvalues, np.sort(np.linalg.svd(weight.reshape(16, -1), compute_uv=False) ** 2), rtol=1e-9
    )
    apart = taken(module, groups="separate")["2"]
    parts = module[2].weight.detach().double().numpy().reshape(4, 6, 4, 3, 3)
    np.testing.assert_allclose(apart.eigenvalues, np.sort(np.concatenate([plain(part) for part in parts])), rtol=1e-9)
    assert (apart.N, apart.M, apart.rf) == (6, 4, 36)


def test_definitions_differ_where_they_say():
    module = net()
    ours, balance, document = (taken(module, definitions=d) for d in ("weightwatcher", "tempbalance", "document"))
    assert "5" in ours
    assert "5" not in balance
    row = balance["6"]
    logs = np.log(row.eigenvalues[15:])
    assert row.alpha == pytest.approx(1 + 15 / (logs - logs[0]).sum())
    np.testing.assert_allclose(document["6"].eigenvalues, ours["6"].eigenvalues / 60, rtol=1e-12)
    np.testing.assert_allclose(document["0"].eigenvalues, 2 * ours["0"].eigenvalues / 16, rtol=1e-12)
    assert document["6"].stable_rank == pytest.approx(ours["6"].stable_rank)
    assert document["6"].rand_distance == pytest.approx(ours["6"].rand_distance ** 2, rel=0.6)  # without the root


@pytest.mark.parametrize("alpha", ["search", "median", "hill", "peak"])
def test_every_estimator_takes_every_layer(alpha):
    for row in taken(net(), alpha=alpha).values():
        assert row.alpha > 1 or row.status != "success"


def test_figures_do_not_depend_on_other_layers_or_threads():
    module = net()
    weights, _ = weights_of(module)
    whole, _ = spectra(weights, Spectra(), seed=3, threads=2)
    told = []
    (alone,), _ = spectra(chosen(weights, ["6"]), Spectra(), seed=3, threads=1, on_layer=lambda: told.append(1))
    assert alone.rand_distance == next(row.rand_distance for row in whole if row.name == "6")
    (other,), _ = spectra(chosen(weights, ["6"]), Spectra(), seed=4)
    assert other.rand_distance != alone.rand_distance
    assert told == [1]


def test_wide_layers_come_out_as_others_do(monkeypatch):
    expected = taken(net())
    monkeypatch.setattr("compresskit.passes.spectra.weights._WIDE", 10)
    for name, row in taken(net()).items():
        assert row.alpha == pytest.approx(expected[name].alpha, rel=1e-9)


def test_what_is_skipped_has_its_reason():
    options = Spectra(min_eigenvalues=20, max_eigenvalues=45, max_side=49)
    reasons = skipped(weights_of(net())[0], options)
    assert reasons == {
        "4": "48 eigenvalues, more than max_eigenvalues 45",
        "5": "16 eigenvalues, fewer than min_eigenvalues 20",
        "6": "a side of 60, more than max_side 49",
        "7": "4 eigenvalues, fewer than min_eigenvalues 20",
    }
    assert skipped([Weight("none", "linear", torch.zeros(0, 5))], Spectra()) == {"none": "it has no weights"}


def test_a_weight_that_is_not_finite_spoils_its_own_layer_alone():
    module = net()
    module[6].weight.data[0, 0] = math.nan
    found = taken(module)
    assert found["6"].status == "weights are not finite"
    assert all(math.isnan(getattr(found["6"], metric)) for metric in METRICS)
    assert math.isfinite(found["0"].alpha)


def test_zeros_rank_one_and_pruned_channels():
    torch.manual_seed(0)
    zero, one, pruned = nn.Linear(30, 20), nn.Linear(30, 20), nn.Linear(200, 120)
    zero.weight.data.zero_()
    one.weight.data = torch.outer(torch.randn(20), torch.randn(30))
    kept = pruned.weight.data[60:].clone()
    pruned.weight.data[:60] = 0
    found = taken(nn.ModuleDict({"zero": zero, "one": one, "pruned": pruned}))
    assert found["zero"].status.startswith("no power law: 0 of 20")
    assert found["zero"].weak_rank_loss == 20
    assert math.isnan(found["zero"].alpha)
    assert found["one"].status.startswith("no power law: 1 of 20")
    assert found["one"].stable_rank == pytest.approx(1)
    assert found["pruned"].matrix_rank == 60
    expected = search(np.linalg.svd(kept.double().numpy(), compute_uv=False) ** 2)
    assert found["pruned"].alpha == pytest.approx(expected.alpha)


def test_ten_rows_are_fitted_and_marked():
    torch.manual_seed(0)
    (row,) = taken(nn.Sequential(nn.Linear(64, 10))).values()
    assert row.num_evals == 10
    assert 8 <= row.num_pl_spikes <= 10
    assert not row.reliable


def test_a_steep_spectrum_is_decomposed_itself():
    """A tail that starts 1e-9 below the largest eigenvalue has no digits left in a Gram matrix."""
    torch.manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(60, 60, dtype=torch.float64))[0] for _ in range(2))
    values = torch.logspace(-5, 1.5, 60, dtype=torch.float64)
    weight = (left * values) @ right
    (row,), _ = spectra([Weight("steep", "linear", weight)], Spectra(threshold=0.0))
    np.testing.assert_allclose(row.eigenvalues, (values**2).numpy(), rtol=1e-6)


def test_networks_and_state_dicts_have_the_same_layers():
    module = net()
    module.position = nn.Parameter(torch.zeros(1, 4, 8))
    weights, others = weights_of(module)
    stored, left = weights_in(module.state_dict())
    assert [weight.name for weight in stored] == [weight.name for weight in weights]
    assert list(others) == ["position"]
    assert list(left) == ["position"]
    assert [weight.name for weight in chosen(weights, ["@conv", "@embedding"])] == ["0", "2", "3", "5"]
    assert [weight.name for weight in chosen(weights, ["@conv3x3"])] == ["0", "2"]
    assert weights[1].groups == 4


@pytest.mark.parametrize(("alpha", "regime"), [(1.9, "over-trained"), (2.0, "well-trained"), (6.1, "under-trained")])
def test_regimes(alpha, regime):
    assert regime_of(alpha) == regime
    assert regime_of(math.inf) == ""


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("estimator", ["search", "median", "hill", "peak"])
def test_eigenvalues_that_are_equal_but_for_rounding_are_no_power_law(dtype, estimator):
    layer = nn.Linear(40, 60, bias=False)
    nn.init.orthogonal_(layer.weight)
    layer.weight.data = (0.3 * layer.weight.data).to(dtype)
    (row,) = taken(nn.Sequential(layer), alpha=estimator).values()
    assert math.isnan(row.alpha)
    assert row.regime == ""
    assert row.status.startswith("no power law: the ")


def test_a_true_power_law_in_single_precision_stays_one():
    """Eigenvalues of a Pareto law of exponent 3, between orthogonal matrices."""
    draws = np.random.default_rng(0)
    values = (1 - np.arange(1, 61) / 61) ** (-1 / 2)
    left, right = (np.linalg.qr(draws.normal(size=(60, 60)))[0] for _ in range(2))
    layer = nn.Linear(60, 60, bias=False)
    layer.weight.data = torch.from_numpy(left * np.sqrt(values) @ right).float()
    (row,) = taken(nn.Sequential(layer)).values()
    assert row.alpha == pytest.approx(search(np.sort(values)).alpha, rel=1e-3)  # of squares in single precision
    assert row.status == "success"
