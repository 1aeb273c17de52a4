"""Files of weights that are damaged, or no files: refused before anything in them is used."""

import io
import json
import os

import pytest
import torch

from compresskit.errors import CheckpointError
from compresskit.models.weights import files
from compresskit.models.weights.files import read_state

STATE = {"weight": torch.arange(64.0), "bias": torch.ones(3)}


def flipped(content: bytes, within: bytes) -> bytes:
    """One bit of the part is another one."""
    place = content.index(within) + len(within) // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def saved(**options) -> bytes:
    file = io.BytesIO()
    torch.save(STATE, file, **options)
    return file.getvalue()


def test_a_bit_that_flipped_in_an_archive_is_seen(tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(saved())
    assert torch.equal(read_state(path).state["weight"], STATE["weight"])
    path.write_bytes(flipped(saved(), STATE["weight"].numpy().tobytes()))
    with pytest.raises(CheckpointError, match=r"weights.pt: archive/data/0 fails its checksum; take another copy"):
        read_state(path)


def test_a_bit_that_flipped_in_a_shard_is_seen(tmp_path):
    (tmp_path / "one.bin").write_bytes(flipped(saved(), STATE["weight"].numpy().tobytes()))
    (tmp_path / "model.bin.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(STATE, "one.bin")}))
    with pytest.raises(CheckpointError, match=r"one.bin: archive/data/0 fails its checksum"):
        read_state(tmp_path / "model.bin.index.json")


def test_archives_without_checksums_are_refused_with_the_reason(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, tmp_path / "weights.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    with pytest.raises(CheckpointError, match=r"checksum; .* if it was written under .*set_crc32_options\(False\)"):
        read_state(tmp_path / "weights.pt")


def test_what_torch_wrote_before_archives_is_read(tmp_path):
    (tmp_path / "weights.pt").write_bytes(saved(_use_new_zipfile_serialization=False))
    assert torch.equal(read_state(tmp_path / "weights.pt").state["weight"], STATE["weight"])


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors", "weights.index.json"])
def test_only_regular_files_are_opened(kind, name, tmp_path):
    path = tmp_path / name
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match=f"{name}: it is no file but a folder, a pipe or a device"):
        read_state(path)


@pytest.mark.timeout(20)
def test_a_shard_that_is_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "one.bin")
    (tmp_path / "model.bin.index.json").write_text(json.dumps({"weight_map": {"weight": "one.bin"}}))
    with pytest.raises(CheckpointError, match=r"one.bin: it is no file but a folder, a pipe or a device"):
        read_state(tmp_path / "model.bin.index.json")


def test_an_index_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_INDEX_SIZE", 2**20)
    path = tmp_path / "model.index.json"
    with path.open("wb") as file:
        file.truncate(2**40)  # of zeros that take no room
    with pytest.raises(CheckpointError, match=r"model.index.json: an index of shards has at most 1 MB"):
        read_state(path)


@pytest.mark.parametrize("name", ["../x.bin", "/etc/passwd", "a/../../x.bin", "..", ".", "", "sub/x.bin"])
def test_shards_lie_beside_their_index(name, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "x.bin").write_bytes(saved())
    (tmp_path / "in/model.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(STATE, name)}))
    with pytest.raises(CheckpointError, match="which is no file of its own folder"):
        read_state(tmp_path / "in/model.index.json")
