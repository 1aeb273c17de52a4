"""The moment cache: equal to a fresh pass, trusted only where it fits, and able to go on where it was stopped."""

import json
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from compresskit.commands import cached_moments
from compresskit.commands.cached_moments import CachedMoments
from compresskit.data.arrays import Arrays
from compresskit.data.dataset import DataSet
from compresskit.distributed import Group
from compresskit.errors import CacheError, ResourceError
from compresskit.graph.trace import trace
from compresskit.numerics.least_squares.solvers import Cholesky, ConjugateGradient
from compresskit.passes import moments as moments_pass
from compresskit.passes.fuse.fusible import find
from compresskit.passes.moments import collect
from compresskit.storage import moment_cache, stored_matrix
from compresskit.storage.lock import is_lock
from compresskit.storage.moment_cache import MomentCache
from tests.graph.nets import Plain, make

LAYERS = [("conv1", "conv2"), ("conv2", "fc1"), ("fc1", "fc2")]


@pytest.fixture
def data(tmp_path: Path) -> DataSet:
    path = tmp_path / "set.h5"
    with h5py.File(path, "w") as file:
        random = torch.Generator().manual_seed(0)
        for group, count in (("train", 90), ("test", 20)):
            file[f"{group}/inputs"] = torch.randn(count, 2, 8, 8, generator=random).numpy()
            file[f"{group}/targets"] = torch.randint(3, (count,), generator=random).numpy()
    return Arrays(path=str(path), classes=3).load(0)


@pytest.fixture
def network():
    return trace(make(Plain).float())


@pytest.fixture
def kept(tmp_path: Path) -> CachedMoments:
    cpu = torch.device("cpu")
    return CachedMoments(MomentCache(tmp_path / "moments", "recompute", cpu), 1e9, 32, cpu, Group())


def with_cache(kept: CachedMoments, **changes) -> CachedMoments:
    return replace(kept, cache=replace(kept.cache, **changes))


def kinds(kept: CachedMoments) -> set[str]:
    """Ends of the files in the cache but for locks."""
    return {path.suffix for path in kept.cache.folder.iterdir() if not is_lock(path)}


def requests(network):
    return [find(network, layers, (2, 8, 8)).request for layers in LAYERS]


def test_equals_a_pass_without_a_cache(network, data, kept):
    found = kept.gather(network, requests(network), data.train)
    for request in requests(network):
        sums = {request.name: request.zeros("cpu")}
        collect(network, [request], data.train.batches(90, torch.device("cpu")), sums)
        expected, moments = sums[request.name].finish(), found[request.name]
        assert moments.count == expected.count
        torch.testing.assert_close(moments.cxx[0].read(), expected.cxx[0], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(moments.cxx[0].diagonal(), expected.cxx[0].diagonal(), rtol=1e-10, atol=1e-12)
        for name in ("mean_x", "mean_y", "cyx", "cyy"):
            torch.testing.assert_close(getattr(moments, name), getattr(expected, name), rtol=1e-10, atol=1e-12)


def test_solvers_read_the_matrix_off_the_disk(network, data, kept, monkeypatch):
    request = requests(network)[0]
    moments = kept.gather(network, [request], data.train)[request.name]
    direct = Cholesky(ridge=0.0)(moments.cxx[0], moments.cyx[0])
    monkeypatch.setattr(stored_matrix, "BLOCK_BYTES", 8 * request.features * 7)  # seven rows at a time
    iterated = ConjugateGradient(tol=1e-12)(moments.cxx[0], moments.cyx[0])
    torch.testing.assert_close(iterated.weight, direct.weight, rtol=1e-6, atol=1e-8)


def test_what_is_kept_is_not_computed_again(network, data, kept, monkeypatch):
    first = kept.gather(network, requests(network), data.train)
    monkeypatch.setattr(cached_moments, "collect", lambda *args, **kwargs: pytest.fail("the data were read again"))
    second = kept.gather(network, requests(network), data.train)
    for name, moments in first.items():
        torch.testing.assert_close(second[name].cyx, moments.cyx, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda n, d, c: (torch.nn.init.zeros_(n.conv1.weight), d.train, c)[1:], "made with other weights"),
        (lambda n, d, c: (d.test, c), "made with other data"),
        (lambda n, d, c: (d.train, replace(c, batch_size=16)), "made with other batch_size"),
    ],
)
def test_an_entry_that_does_not_fit_is_computed_again_or_refused(network, data, kept, change, reason):
    request = requests(network)[0]
    kept.gather(network, [request], data.train)
    split, changed = change(network, data, kept)
    with pytest.raises(CacheError, match=f"{reason}; remove it, name another `moments.cache`"):
        with_cache(changed, stale="fail").gather(network, [request], split)
    found = changed.gather(network, [request], split)[request.name]
    assert found.count == 16 * len(split)
    assert len(list(kept.cache.folder.glob("*.h5"))) == 2  # the other one is another run's to use


def test_targets_come_from_the_teacher_who_is_part_of_the_identity(network, data, kept):
    request = requests(network)[2]  # from what the last two layers read to the network's output
    inputs = torch.cat([inputs for inputs, _ in data.train.batches(90, torch.device("cpu"))])
    with torch.no_grad():
        hidden = F.relu(network.conv2(F.max_pool2d(F.relu(network.norm1(network.conv1(inputs))), 2)))
        x = hidden.flatten(1).double()
    for seed in (1, 2, None):  # two teachers in turn, then none: the student's own outputs
        teacher = trace(make(Plain, seed=seed).float()) if seed else None
        if seed != 1:
            with pytest.raises(CacheError, match="made with other teacher"):
                with_cache(kept, stale="fail").gather(network, [request], data.train, teacher=teacher)
        found = kept.gather(network, [request], data.train, teacher=teacher)[request.name]
        with torch.no_grad():
            y = (teacher or network)(inputs).double()
        expected = (y - y.mean(0)).T @ (x - x.mean(0)) / len(x)
        # the nets run in float32, whose products depend on the size of the batch
        torch.testing.assert_close(found.cyx[0], expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.mean_y.flatten(), y.mean(0), rtol=1e-4, atol=1e-6)


def flip_bits(path: Path, within: np.ndarray) -> None:
    """Turns over some bits of the numbers of a dataset where they lie in the file."""
    content, values = path.read_bytes(), within.tobytes()
    start = content.index(values)
    random = np.random.default_rng(0)
    damaged = bytearray(content)
    for place in random.integers(start, start + len(values), 40):
        damaged[place] ^= 1 << int(random.integers(8))
    path.write_bytes(bytes(damaged))


def cut_off(path: Path, within: np.ndarray) -> None:
    path.write_bytes(path.read_bytes()[:100])


def break_the_header(path: Path, within: np.ndarray) -> None:
    content = bytearray(path.read_bytes())
    content[560:564] = b"\xff\x00\xff\x00"
    path.write_bytes(bytes(content))


def fill_with_nan(path: Path, within: np.ndarray) -> None:
    with h5py.File(path, "r+") as file:
        file["cyx"][...] = np.nan


def drop_a_dataset(path: Path, within: np.ndarray) -> None:
    with h5py.File(path, "r+") as file:
        del file["mean_y"]


def reshape_a_dataset(path: Path, within: np.ndarray) -> None:
    with h5py.File(path, "r+") as file:
        values = file["cxx"][()]
        del file["cxx"]
        file["cxx"] = values[:, :-1]


@pytest.mark.parametrize(
    "damage", [flip_bits, cut_off, break_the_header, fill_with_nan, drop_a_dataset, reshape_a_dataset]
)
def test_a_damaged_entry_is_computed_again(network, data, kept, caplog, damage):
    request = requests(network)[0]
    expected = kept.gather(network, [request], data.train)[request.name].cyx
    (path,) = kept.cache.folder.glob("*.h5")
    damage(path, expected.numpy())
    with pytest.raises(CacheError, match="it is damaged"):
        with_cache(kept, stale="fail").gather(network, [request], data.train)
    with caplog.at_level(logging.WARNING):
        found = kept.gather(network, [request], data.train)[request.name]
    torch.testing.assert_close(found.cyx, expected, rtol=0, atol=0)
    assert "it is damaged" in caplog.text


def test_damage_while_an_entry_is_in_use_is_seen(network, data, kept):
    request = requests(network)[0]
    moments = kept.gather(network, [request], data.train)[request.name]
    (path,) = kept.cache.folder.glob("*.h5")
    flip_bits(path, moments.cxx[0].read().numpy())
    with pytest.raises(CacheError, match=r"it was damaged while it was in use .*; run the command again with --resume"):
        Cholesky(ridge=0.0)(moments.cxx[0], moments.cyx[0])


def test_what_is_read_stays_what_it_was_when_others_replace_the_file(network, data, kept):
    request = requests(network)[0]
    moments = kept.gather(network, [request], data.train)[request.name]
    expected = moments.cxx[0].read()
    (path,) = kept.cache.folder.glob("*.h5")
    other = path.with_name("other")
    other.write_bytes(b"another run's")
    other.replace(path)
    torch.testing.assert_close(moments.cxx[0].read(), expected, rtol=0, atol=0)


def test_a_damaged_part_is_not_gone_on_with(network, data, kept, monkeypatch, caplog):
    request = requests(network)[0]
    expected = kept.gather(network, [request], data.train)[request.name].cyx
    stopped = with_cache(kept, folder=kept.cache.folder.with_name("stopped"))
    monkeypatch.setattr(cached_moments, "SAVE_EVERY", 0.0)

    def stop(images: int) -> None:
        if images > 32:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped.gather(network, [request], data.train, progress=stop)
    (part,) = stopped.cache.folder.glob("*.part0")
    with h5py.File(part, "r") as file:
        sums = file["yx"][()]
    flip_bits(part, sums)
    with caplog.at_level(logging.WARNING):
        found = stopped.gather(network, [request], data.train)[request.name]
    assert "so that pass starts anew" in caplog.text
    torch.testing.assert_close(found.cyx, expected, rtol=0, atol=0)


def test_a_run_waits_for_another_that_computes_the_same(network, data, kept, monkeypatch, caplog):
    request = requests(network)[0]
    passes = []
    original = moments_pass.collect

    def slow(*args, **kwargs):
        passes.append(threading.get_ident())
        time.sleep(0.3)
        original(*args, **kwargs)

    monkeypatch.setattr(cached_moments, "collect", slow)
    with caplog.at_level(logging.INFO), ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(kept.gather, network, [request], data.train) for _ in range(2)]
        first, second = (run.result()[request.name] for run in runs)
    assert len(passes) == 1
    assert "waiting for moments of" in caplog.text  # whose they are may not be written yet
    torch.testing.assert_close(first.cyx, second.cyx, rtol=0, atol=0)


def test_several_passes_are_told_as_one_work(network, data, kept):
    """Of 90 images each: the largest of the moments take all of the memory."""
    asked, started, served = requests(network), [], []
    one_each = replace(kept, memory=max(request.nbytes for request in asked))
    one_each.gather(network, asked, data.train, served.append, start=started.append)
    assert started == [2 * 90]
    assert served == [32, 64, 90, 90 + 32, 90 + 64, 90 + 90]
    one_each.gather(network, asked, data.train, served.append, start=started.append)
    assert len(started) == 1  # all are there


def test_an_interrupted_pass_goes_on_where_it_stopped(network, data, kept, monkeypatch):
    expected = kept.gather(network, requests(network), data.train)
    stopped = with_cache(kept, folder=kept.cache.folder.with_name("stopped"))
    monkeypatch.setattr(cached_moments, "SAVE_EVERY", 0.0)
    served = []

    def stop(images: int) -> None:
        served.append(images)
        if len(served) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped.gather(network, requests(network), data.train, progress=stop)
    assert kinds(stopped) == {".part0"}
    found = stopped.gather(network, requests(network), data.train, progress=served.append)
    assert served == [32, 64, 64, 90]  # the second batch had not been saved
    assert kinds(stopped) == {".h5"}
    for name, moments in expected.items():
        torch.testing.assert_close(found[name].cyx, moments.cyx, rtol=0, atol=0)
        torch.testing.assert_close(found[name].cxx[0].diagonal(), moments.cxx[0].diagonal(), rtol=0, atol=0)


def test_layers_are_taken_in_groups_that_fit(network, data, kept, monkeypatch):
    passes = []
    original = moments_pass.collect
    monkeypatch.setattr(
        cached_moments, "collect", lambda n, r, *a, **k: (passes.append([q.name for q in r]), original(n, r, *a, **k))
    )
    asked = requests(network)
    tight = replace(kept, memory=max(request.nbytes for request in asked))
    tight.gather(network, asked, data.train)
    assert len(passes) > 1
    assert sorted(sum(passes, [])) == sorted(request.name for request in asked)


def test_one_layer_too_large_for_the_memory_is_refused(network, data, kept):
    with pytest.raises(ResourceError, match=r"take 0\.1 MB, 0\.0 MB are allowed; raise `moments.memory`, leave the"):
        replace(kept, memory=1000).gather(network, requests(network), data.train)


def test_a_full_disk_is_named_before_the_pass(network, data, kept, monkeypatch):
    def full(path: Path, nbytes: int) -> None:
        raise ResourceError(f"{nbytes} bytes")

    monkeypatch.setattr(cached_moments, "check_disk", full)
    with pytest.raises(ResourceError, match="bytes"):
        kept.gather(network, requests(network), data.train)
    assert kinds(kept) == set()


def test_a_process_leaves_alone_what_another_is_writing(kept):
    """Two processes of a run: the second drops its part while the first writes the whole."""
    cache = kept.cache
    cache.folder.mkdir()
    identity = {"weights": "x"}
    path = cache._path("conv1", identity)
    writing = path.with_name(f".{path.name}.77.tmp")
    writing.write_text("half")
    own = cache._part("conv1", 1, identity)
    rest = own.with_name(f".{own.name}.78.tmp")
    rest.write_text("half")
    cache.drop_part("conv1", 1, identity)
    assert writing.exists()
    assert not rest.exists()


def test_a_damaged_file_never_reaches_hdf5(network, data, kept, monkeypatch):
    """Which crashes, or loops without end, on some."""
    request = requests(network)[0]
    kept.gather(network, [request], data.train)
    (path,) = kept.cache.folder.glob("*.h5")
    whole = path.read_bytes()
    identity = json.loads(h5py.File(path).attrs["identity"])
    monkeypatch.setattr(moment_cache.h5py, "File", lambda *args, **options: pytest.fail("HDF5 opened it"))
    for place in (0, 512, 600, len(whole) // 2, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(bytes(damaged))
        assert not kept.cache.holds(request.name, identity, request.shapes)
