"""A checkpoint comes back as it was, whole or with a word on what is wrong with it."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

import compresskit
from compresskit.errors import CheckpointError, ResourceError, UnsupportedModelError
from compresskit.graph.masks import apply_masks
from compresskit.graph.trace import trace
from compresskit.storage.checkpoint import Checkpoint, load, save
from compresskit.storage.reading import file_hash
from tests.graph.nets import INPUTS, Plain, batch, make
from tests.storage.zoo import all_names, load_elsewhere, store

HISTORY = [{"verb": "train", "recipe": {"epochs": 3, "lr": 1e-3}, "metrics": {"accuracy": 0.1 + 0.2}, "parent": None}]


def nested(levels: int) -> list:
    found: list = []
    for _ in range(levels):
        found = [found]
    return found


def checkpoint(kind=Plain, **changes) -> Checkpoint:
    """Built anew each time, so that equal content comes as different objects."""
    content = {
        "network": trace(make(kind)),
        "model": {"kind": "convnet", "channels": (3, 4)},
        "input_shape": INPUTS[kind],
        "task": "classification",
        "preprocessing": {"mean": [0.5, 0.25], "std": [1.0, 2.0]},
        "history": json.loads(json.dumps(HISTORY)),
    }
    return Checkpoint(**(content | changes))


@pytest.fixture
def path(tmp_path):
    save(checkpoint(), tmp_path / "model.pt")
    return tmp_path / "model.pt"


def rewrite(path, change) -> None:
    """Changes what the file holds, past all checks of `save`."""
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


@pytest.mark.parametrize("kind", INPUTS)
def test_everything_comes_back(kind, tmp_path):
    original = checkpoint(kind)
    save(original, tmp_path / "model.pt")
    back = load(tmp_path / "model.pt")
    assert torch.equal(back.network(batch(kind)), original.network(batch(kind)))
    assert not back.network.training
    assert back.model == {"kind": "convnet", "channels": [3, 4]}
    assert back.input_shape == INPUTS[kind]
    assert (back.task, back.preprocessing, back.history) == ("classification", original.preprocessing, HISTORY)
    assert back.masks == {}
    assert all(p.dtype == torch.float64 and p.requires_grad and p.is_leaf for p in back.network.parameters())


def masked(share: float = 0.9) -> Checkpoint:
    """With masks on a convolution, of a number of weights that is no multiple of eight, and on a linear layer."""
    network = trace(nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(5 * 36, 100)))
    draws = torch.Generator().manual_seed(0)
    masks = {name: torch.rand(network.get_parameter(name).shape, generator=draws) > share for name in MASKED}
    apply_masks(network, masks)
    return checkpoint(network=network, input_shape=(3, 8, 8), masks=masks)


MASKED = ("0.weight", "2.weight")


def test_masks_come_back_with_their_zeros(tmp_path):
    original = masked()
    save(original, tmp_path / "model.pt")
    back = load(tmp_path / "model.pt")
    assert list(back.masks) == list(MASKED)
    for name, mask in original.masks.items():
        assert back.masks[name].dtype == torch.bool
        assert torch.equal(back.masks[name], mask)
        assert torch.equal(back.network.get_parameter(name), original.network.get_parameter(name))
    save(back, tmp_path / "again.pt")
    assert file_hash(tmp_path / "again.pt") == file_hash(tmp_path / "model.pt")


def test_a_file_holds_only_the_weights_that_masks_keep(tmp_path):
    save(masked(), tmp_path / "sparse.pt")
    save(checkpoint(network=masked().network, input_shape=(3, 8, 8)), tmp_path / "dense.pt")
    kept = sum(int(mask.sum()) for mask in masked().masks.values())
    places = sum(mask.numel() for mask in masked().masks.values())
    saved = (tmp_path / "dense.pt").stat().st_size - (tmp_path / "sparse.pt").stat().st_size
    assert saved > 0.9 * (4 * (places - kept) - places / 8)


def test_a_weight_that_is_masked_and_not_zero_is_a_mistake_of_ours(tmp_path):
    original = masked()
    torch.nn.init.ones_(original.network.get_parameter("0.weight"))
    with pytest.raises(ValueError, match="a masked weight is not zero"):
        save(original, tmp_path / "model.pt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["masks"].update({"1.weight": c["masks"]["0.weight"]}), "a mask is for 1.weight, which"),
        (lambda c: c["masks"].update({"0.weight": c["masks"]["0.weight"][1:]}), "mask of 0.weight does not fit"),
        (lambda c: c["masks"].update({"0.weight": c["masks"]["0.weight"].bool()}), "mask of 0.weight does not fit"),
        (
            lambda c: c["tensors"].update({"2.weight": c["tensors"]["2.weight"][1:]}),
            "2.weight has .* values for a mask",
        ),
    ],
)
def test_masks_that_do_not_fit_are_refused(change, words, tmp_path):
    save(masked(), tmp_path / "model.pt")
    rewrite(tmp_path / "model.pt", change)
    with pytest.raises(CheckpointError, match=words):
        load(tmp_path / "model.pt")


def test_files_without_masks_stay_readable_by_older_versions(path):
    assert torch.load(path, weights_only=True)["version"] == 1


def test_compresskit_load_gives_the_network(path):
    network = compresskit.load(str(path))
    assert isinstance(network, nn.Module)
    assert not network.training
    assert torch.equal(network(batch(Plain)), make(Plain)(batch(Plain)))


def test_loading_draws_no_random_numbers(path):
    state = torch.get_rng_state()
    load(path)
    assert torch.equal(torch.get_rng_state(), state)


def test_same_content_gives_the_same_bytes(path, tmp_path):
    save(checkpoint(), tmp_path / "other name.pt")
    save(load(path), tmp_path / "again.pt")
    code = (
        "from tests.storage.test_checkpoint import checkpoint, save; from pathlib import Path; import sys; "
        "save(checkpoint(), Path(sys.argv[1]))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": os.getcwd()}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "elsewhere.pt")], check=True, env=environment)
    assert len({file_hash(file) for file in tmp_path.glob("*.pt")}) == 1
    assert len(list(tmp_path.glob("*.pt"))) == 4
    save(checkpoint(task="regression"), tmp_path / "different.pt")
    assert file_hash(tmp_path / "different.pt") != file_hash(path)


def test_tied_weights_stay_tied_and_are_stored_once(tmp_path):
    net = nn.Sequential(nn.Linear(50, 50), nn.Linear(50, 50))
    net[1].weight = net[0].weight
    save(checkpoint(network=trace(net), input_shape=(50,)), tmp_path / "model.pt")
    back = load(tmp_path / "model.pt").network
    assert back.get_submodule("0").weight is back.get_submodule("1").weight
    assert len(list(back.parameters())) == 3
    assert (tmp_path / "model.pt").stat().st_size < 4 * 50 * 50 * 1.9


def test_a_part_of_a_larger_tensor_is_stored_alone(tmp_path):
    net = nn.Sequential(nn.Linear(10, 3))
    net[0].weight = nn.Parameter(torch.randn(100000, 10)[:3])
    save(checkpoint(network=trace(net), input_shape=(10,)), tmp_path / "model.pt")
    assert (tmp_path / "model.pt").stat().st_size < 20000
    assert torch.equal(load(tmp_path / "model.pt").network.get_submodule("0").weight, net[0].weight)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_kept(value, tmp_path):
    net = make(Plain)
    net.fc1.weight.data[0, 0] = value
    save(checkpoint(network=trace(net)), tmp_path / "model.pt")
    back = load(tmp_path / "model.pt").network.get_submodule("fc1").weight
    assert torch.equal(back.nan_to_num(7, 8), net.fc1.weight.nan_to_num(7, 8))


def test_integer_buffers_keep_their_type(path):
    assert load(path).network.get_submodule("norm1").num_batches_tracked.dtype == torch.int64


def test_options_that_do_not_fit_the_weights_are_refused_on_saving(tmp_path):
    net = make(Plain)
    net.fc2.weight = nn.Parameter(net.fc2.weight[:2])
    with pytest.raises(UnsupportedModelError, match=r"wrong shape: fc2.weight \(2, 5\) for \(3, 5\)"):
        save(checkpoint(network=trace(net)), tmp_path / "model.pt")
    assert not list(tmp_path.iterdir())


def zipped(path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "no tensors here")


def test_every_cut_of_the_file_is_noticed(path):
    data = path.read_bytes()
    for size in (0, 1, 2, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError, match=r"model.pt: .*(cut off|no compresskit checkpoint)"):
            load(path)


def test_a_flipped_bit_in_a_tensor_is_noticed(path):
    with zipfile.ZipFile(path) as archive:
        member = max(archive.infolist(), key=lambda info: info.file_size)
        content = archive.read(member)
    data = bytearray(path.read_bytes())
    data[data.index(content) + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="fails its checksum; it is cut off or damaged"):
        load(path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.unlink(), "no such file; name the model.pt"),
        (lambda path: (path.unlink(), path.mkdir()), "it is a folder; name the model.pt in it"),
        (lambda path: path.write_text("model: {kind: mlp}"), "no compresskit checkpoint; name the model.pt"),
        (lambda path: torch.save(make(Plain).state_dict(), path), "a plain state dict goes into `weights`"),
        (lambda path: torch.save(make(Plain), path), "Python objects, which are never run"),
        (lambda path: torch.save([1, 2], path), "no compresskit checkpoint"),
        (zipped, "it cannot be read"),
    ],
)
def test_a_file_that_is_no_checkpoint(path, write, message):
    write(path)
    with pytest.raises(CheckpointError, match=message):
        load(path)


class Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def test_a_pickle_that_would_run_code_does_not(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"format": "compresskit checkpoint", "version": 1, "graph": Evil()}, path)
    with pytest.raises(CheckpointError, match="never run"):
        load(path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(version=3), "newer compresskit .format 3, this one reads up to 2.; update compresskit"),
        (lambda c: c.update(version=None), "newer compresskit"),
        (lambda c: c.pop("history"), r"it is damaged \(history: Field required\)"),
        (lambda c: c.update(input_shape=3), r"it is damaged \(input_shape: Input should be a valid list, found 3\)"),
        (lambda c: c.update(input_shape=[1, -8, 8]), r"input_shape.1: Input should be greater than or equal to 1"),
        (lambda c: c.update(input_shape=[2, 10**6, 10**6]), "samples would have 2,000,000,000,000 numbers"),
        (lambda c: c.update(tensors=None), "tensors: Input should be a valid dictionary, found None"),
        (lambda c: c.update(model="convnet"), "model: Input should be a valid dictionary"),
        (lambda c: c.update(preprocessing={"mean": [float("nan")]}), "preprocessing.mean.0: Input should be a finite"),
        (lambda c: c["history"][0].update(metrics=[]), "history.0.metrics: Input should be a valid dictionary"),
        (lambda c: c.update(task="guessing"), "task: Input should be 'classification'"),
        (lambda c: c["history"][0].update(recipe=nested(100)), "nested 41 levels deep or more, 40 are allowed"),
        (lambda c: c["tensors"].update({"fc1.bias": torch.ones(5).to_sparse()}), "no plain tensor: fc1.bias"),
        (lambda c: c["tensors"].update({"fc1.bias": torch.empty(5, device="meta")}), "no plain tensor: fc1.bias"),
        (lambda c: c["tensors"].update({"fc1.bias": torch.ones(1).expand(5)}), "no plain tensor: fc1.bias"),
        (
            lambda c: c["tensors"].update({"fc1.bias": torch.ones(5, dtype=torch.complex64)}),
            "no plain tensor: fc1.bias",
        ),
        (lambda c: c["tensors"].update({"fc1.bias": torch.ones(5).to(torch.float8_e4m3fn)}), "no plain tensor: fc1.b"),
        (lambda c: c["tensors"].pop("fc1.bias"), "missing: fc1.bias"),
        (lambda c: c["tensors"].update(extra=torch.ones(1)), "not in the graph: extra"),
        (lambda c: c["tensors"].update({"fc1.bias": torch.ones(6)}), r"wrong shape: fc1.bias \(6,\) for \(5,\)"),
        (lambda c: c["tensors"].update({"fc1.bias": torch.ones(5).int()}), "wrong type: fc1.bias torch.int32"),
        (lambda c: c["tensors"].update({"fc1.bias": [1]}), "no plain tensor: fc1.bias"),
        (lambda c: c["tensors"].clear(), "missing: conv1.weight, .* and 8 more"),
        (lambda c: c["graph"]["nodes"][3].update(target="os.system"), "'os.system', which is not in the list"),
    ],
)
def test_a_checkpoint_with_other_content(path, change, message):
    rewrite(path, change)
    with pytest.raises(CheckpointError, match=f"{path.name}: .*{message}"):
        load(path)


def test_hash_of_a_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        file_hash(tmp_path / "model.pt")


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("only root can mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("width", [130, 200, 1000])  # fails in the last bytes, or long before
def test_a_full_disk_is_said_and_leaves_the_last_checkpoint(small_disk, width):
    path = small_disk / "model.pt"
    save(checkpoint(), path)
    before = file_hash(path)
    with pytest.raises(ResourceError, match="the disk is full"):
        save(checkpoint(network=trace(nn.Sequential(nn.Linear(width, width)))), path)
    assert file_hash(path) == before
    assert os.listdir(small_disk) == ["model.pt"]


FAMILIES = [
    *("densenet121", "efficientnet_b0", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf"),
    *("resnet18", "shufflenet_v2_x0_5", "squeezenet1_1", "googlenet", "convnext_tiny", "swin_t", "swin_v2_t"),
]


def test_torchvisions_families_load_without_torchvision(tmp_path):
    """The rest of the families (AlexNet, VGG, ViT, MaxViT, Inception) are large; the sweep below has them."""
    for name in FAMILIES:
        store(name, tmp_path / name)
    load_elsewhere(*(tmp_path / name for name in FAMILIES))


@pytest.mark.slow
@pytest.mark.parametrize("name", all_names())
def test_every_torchvision_classifier_loads_without_torchvision(name, tmp_path):
    store(name, tmp_path / name)
    load_elsewhere(tmp_path / name)
    (tmp_path / name / "model.pt").unlink()  # the largest take gigabytes


def broken(tmp_path, change) -> Path:
    """A file whose graph is changed: by the row of the node `relu`, or that of the output."""
    path = tmp_path / "model.pt"
    save(checkpoint(), path)
    content = torch.load(path, weights_only=True)
    rows = {row["name"]: row for row in content["graph"]["nodes"]}
    change(content["graph"]["nodes"], rows)
    torch.save(content, path)
    return path


def call(name, target, *args):
    return {"op": "call_function", "name": name, "target": target, "args": list(args), "kwargs": {}, "scope": ""}


def behind_input(*rows):
    """Puts rows behind the input; the last one's value goes nowhere."""
    return lambda nodes, _: nodes.__setitem__(slice(1, 1), rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (behind_input(call("n", "operator.pow", 7, 10**9)), r"node n \(pow\) cannot run: a power of 1000000000 is not"),
        (
            behind_input(call("n", "operator.mul", [0, 1], 10**9)),
            r"node n \(mul\) cannot run: a list is not",
        ),
        (behind_input(call("n", "operator.mul", 2**62, 2**62)), r"node n \(mul\) makes a whole number of more than 64"),
        (
            behind_input(call("n", "torch.zeros", 10**5, 10**5)),
            r"node n \(zeros\) makes 10,000,000,000 numbers of one sample, at most",
        ),
        (behind_input(call("n", "torch.cat", [1, 2])), r"node n \(cat\) cannot run: "),
        (
            lambda nodes, rows: rows["output"].update(args=[{"node": nodes[0]["name"]}]),
            None,  # the input itself is a batch
        ),
        (behind_input(call("n", "torch.zeros", 10**4, 10**4)), None),  # large, and allowed
    ],
)
def test_a_graph_that_cannot_run_is_refused_by_its_node(tmp_path, change, message):
    path = broken(tmp_path, change)
    if message is None:
        load(path)
        return
    with pytest.raises(CheckpointError, match=rf"model.pt: .*{message}"):
        load(path)


def test_an_output_without_a_batch_is_refused(tmp_path):
    def whole(nodes, rows):
        nodes[-1:-1] = [call("n", "torch.sum", rows["output"]["args"][0])]
        rows["output"]["args"] = [{"node": "n"}]

    with pytest.raises(CheckpointError, match=r"its output for one sample is \(\), and a batch of outputs is wanted"):
        load(broken(tmp_path, whole))


def test_a_file_that_unpacks_to_more_than_it_is_is_refused(tmp_path):
    save(checkpoint(), tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "whole.pt") as whole, zipfile.ZipFile(tmp_path / "bomb.pt", "w") as bomb:
        for member in whole.infolist():
            bomb.writestr(member.filename, whole.read(member), zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="bomb.pt: its parts are compressed, as torch never does"):
        load(tmp_path / "bomb.pt")


def test_a_pipe_is_no_checkpoint(tmp_path):
    os.mkfifo(tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="it is no file but a pipe or a device"):
        load(tmp_path / "model.pt")
