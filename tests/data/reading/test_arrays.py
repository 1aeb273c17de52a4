"""Damaged and strange HDF5 and NPZ files: one DataError that names the file and the array, and no waiting."""

import io
import os
import struct
import zipfile
from contextlib import suppress

import h5py
import numpy as np
import pytest

from compresskit.data.arrays import Arrays
from compresskit.errors import DataError

TARGETS = np.arange(12) % 3
INPUTS = np.arange(48.0).reshape(12, 4)


def load(path):
    return Arrays(path=str(path)).load(seed=0)


def refused(path, words):
    with pytest.raises(DataError, match=words) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def hdf5(path, **arrays):
    with h5py.File(path, "w") as file:
        for name, value in ({"inputs": INPUTS, "targets": TARGETS} | arrays).items():
            file[name] = value
    return path


def npy(array, shape=None):
    """The bytes of an .npy member, with another shape in its header."""
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        out, {"descr": array.dtype.str, "fortran_order": False, "shape": shape or array.shape}
    )
    return out.getvalue() + array.tobytes()


def npz(path, compression=zipfile.ZIP_STORED, **members):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in ({"inputs": npy(INPUTS), "targets": npy(TARGETS)} | members).items():
            archive.writestr(f"{name}.npy", content)
    return path


def test_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.h5")
    os.symlink("/nowhere.h5", tmp_path / "link.h5")
    refused(tmp_path / "pipe.h5", "a named pipe, where a file is needed; check data.path")
    refused(tmp_path / "link.h5", "a link to /nowhere.h5, which cannot be reached; check data.path")
    refused(tmp_path, "a folder, where a file is needed; check data.path")
    refused(tmp_path / ("n" * 300), "cannot be reached .*; check data.path")


def test_a_home_that_is_nobodys():
    with pytest.raises(DataError, match="~nosuchuser/a.h5: there is no such home folder; write the folder out"):
        load("~nosuchuser/a.h5")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_array_that_ends_early(compression, tmp_path):
    """Its sum is right: the file was written so."""
    refused(npz(tmp_path / "a.npz", compression, inputs=npy(INPUTS)[:-40]), "cannot be read as arrays")
    refused(npz(tmp_path / "b.npz", compression, inputs=b""), "cannot be read as arrays")
    refused(npz(tmp_path / "c.npz", compression, inputs=npy(INPUTS) + bytes(8)), "inputs.npy is longer than its array")


def test_a_zip_member_that_ends_in_mid_stream(tmp_path):
    """The directory at the end is whole, and the compressed data before it are not: zipfile raises EOFError."""
    path = npz(tmp_path / "a.npz", zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("inputs.npy")
        begin = info.header_offset + 30 + len(info.filename)
        directory = content.index(b"PK\x01\x02")
    content[begin : begin + info.compress_size] = b""
    content[directory - info.compress_size : directory - info.compress_size] = b""
    path.write_bytes(content)
    refused(path, "cannot be read as arrays|neither an HDF5")


@pytest.mark.parametrize("shape", [(2**60, 4), (2**31, 2**31), (12, 2**34), (-1, 4), (2**70,)])
def test_absurd_shapes_in_headers(shape, tmp_path):
    refused(npz(tmp_path / "a.npz", inputs=npy(INPUTS, shape)), "a.npz: ")


def test_sizes_that_no_memory_holds_are_refused_before_it_is_asked_for(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["targets"] = TARGETS
        file.create_dataset("inputs", (12, 2**45), np.uint8, chunks=(1, 2**16))[0, :5] = 1
    refused(tmp_path / "a.h5", r"inputs: of 422,212 GB, and this machine has .* GB of memory")


def test_what_was_never_written(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["targets"] = TARGETS
        file.create_dataset("inputs", (12, 4), "f4")
    refused(tmp_path / "a.h5", r"inputs: of shape \(12, 4\), but nothing was ever written to it")
    hdf5(tmp_path / "b.h5", inputs=h5py.Empty("f4"))
    refused(tmp_path / "b.h5", "inputs: empty; give at least one sample")


def test_numbers_in_other_files(tmp_path):
    hdf5(tmp_path / "source.h5")
    for name, source in (("good.h5", "source.h5"), ("bad.h5", "gone.h5")):
        layout = h5py.VirtualLayout((12, 4), "f8")
        layout[:] = h5py.VirtualSource(source, "inputs", (12, 4))
        with h5py.File(tmp_path / name, "w") as file:
            file["targets"] = TARGETS
            file.create_virtual_dataset("inputs", layout)
    assert len(load(tmp_path / "good.h5").train) == 10
    with pytest.raises(DataError, match=r"gone.h5: there is no such file; .*bad.h5 inputs is made of it"):
        load(tmp_path / "bad.h5")
    with h5py.File(tmp_path / "outside.h5", "w") as file:
        file["targets"] = TARGETS
        file.create_dataset("inputs", (12, 4), "f8", external=[("/dev/zero", 0, 384)])
    refused(tmp_path / "outside.h5", "inputs: its numbers lie in other files")


KINDS = {
    "group": ({"inputs/deeper": INPUTS}, "holds no array inputs, only inputs/deeper, targets"),
    "compound": ({"inputs": np.zeros(12, [("a", "f4"), ("b", "f4")])}, r"inputs: of type \[\('a', '<f4'\)"),
    "texts as inputs": ({"inputs": np.array([b"cat"] * 12)}, r"inputs: of type <U3; .*texts can only be targets"),
    "complex": ({"inputs": INPUTS + 1j}, "inputs: of type complex128; .*as two channels"),
    "scalars": ({"targets": 3}, r"targets of shape \(\) do not fit"),
    "zero length": ({"inputs": np.zeros((0, 4)), "targets": np.zeros(0, int)}, r"inputs: empty, of shape \(0, 4\)"),
    "zero width": ({"inputs": np.zeros((12, 0))}, r"inputs: empty, of shape \(12, 0\)"),
    "references": ({"inputs": np.array([h5py.Reference()] * 12, h5py.ref_dtype)}, "inputs: of type object"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_arrays_that_are_refused(kind, tmp_path):
    arrays, words = KINDS[kind]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, value in ({"targets": TARGETS, "inputs": INPUTS} | arrays).items():
            if not any(other.startswith(f"{name}/") for other in arrays):
                file[name] = value
    refused(tmp_path / "a.h5", words)


def test_a_broken_header_of_hdf5(tmp_path):
    content = hdf5(tmp_path / "whole.h5").read_bytes()
    path = tmp_path / "a.h5"
    for begin in range(8, 2000, 40):
        path.write_bytes(content[:begin] + b"\xff" * 40 + content[begin + 40 :])
        with suppress(DataError):  # and nothing else
            load(path)


@pytest.mark.parametrize("size", [0, 3])
def test_a_chunk_too_short_for_its_checksum(size, tmp_path):
    """libhdf5 2.0 ends the process at it (signal 11), so that nothing is read before sizes are looked at."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["targets"] = TARGETS
        inputs = file.create_dataset("inputs", data=INPUTS, chunks=(6, 4), compression="gzip", fletcher32=True)
        stored = inputs.id.get_chunk_info(1)
    key = struct.pack("<IIQ", stored.size, 0, 6)  # of the B-tree: size, filters that were left out, place
    content = path.read_bytes()
    assert content.count(key) == 1
    path.write_bytes(content.replace(key, struct.pack("<IIQ", size, 0, 6)))
    refused(path, f"inputs: damaged, with a chunk of {size} bytes; write the file anew")


def test_whatever_h5py_raises_is_one_line(tmp_path, monkeypatch):
    path = hdf5(tmp_path / "a.h5")

    def fail(self, name):
        raise KeyError("Unable to synchronously open object\n(bad object header version number)")

    monkeypatch.setattr(h5py.Group, "__getitem__", fail)
    refused(path, r"cannot be read as arrays \(.*bad object header version number.*\); write the file anew")


def test_encrypted_and_unknown_zip_members(tmp_path):
    path = npz(tmp_path / "a.npz")
    content = path.read_bytes()
    at = content.index(b"PK\x01\x02")
    path.write_bytes(content[: at + 8] + struct.pack("<H", 1) + content[at + 10 :])
    refused(path, "cannot be read as arrays .*encrypted")
    path.write_bytes(content[: at + 10] + struct.pack("<H", 99) + content[at + 12 :])
    refused(path, "cannot be read as arrays")
