"""Which run came of which."""

from compresskit.commands.show.overview.found import find
from compresskit.commands.show.overview.lineage import Lineage
from tests.commands.show.overview.made import make


def test_checkpoints_are_known_by_their_hashes(tmp_path):
    make(tmp_path / "1-train", checkpoint="a")
    make(tmp_path / "2-prune", parents=("a", "a"), checkpoint="b")
    make(tmp_path / "3-finetune", parents=("b",), checkpoint="c")
    make(tmp_path / "4-copy", checkpoint="a")
    make(tmp_path / "5-evaluate", parents=("c", "z"))
    make(tmp_path / "6-spectra", parents=("z",))
    make(tmp_path / "7-itself", parents=("x",), checkpoint="x")
    make(tmp_path / "8-both", parents=("b", "a"))
    runs = find([tmp_path]).runs
    lineage = Lineage(runs)
    by_name = {run.label: run for run in runs}
    assert [run.label for run in lineage.parents(by_name["8-both"])] == ["2-prune", "1-train"]
    assert lineage.parents(by_name["7-itself"]) == []
    assert lineage.elsewhere(by_name["5-evaluate"]) == ["z"]
    told = [(generation, run.label) for generation, run in lineage.trees()]
    assert told == [(0, "1-train"), (1, "2-prune"), (2, "3-finetune"), (3, "5-evaluate"), (2, "8-both")]
