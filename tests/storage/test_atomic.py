"""Files of arrays: every name that a layer can have."""

import numpy as np

from compresskit.storage.atomic import write_arrays


def test_arrays_of_any_name_are_read_back(tmp_path):
    names = ["file", "args", "kwds", "allow_pickle", "arr_0", "block.file", "net/0.conv/own", "a-b"]
    arrays = {name: np.arange(number + 1.0) for number, name in enumerate(names)}
    write_arrays(tmp_path / "arrays.npz", arrays)
    with np.load(tmp_path / "arrays.npz") as found:
        assert sorted(found.files) == sorted(names)
        for name in names:
            np.testing.assert_array_equal(found[name], arrays[name])
