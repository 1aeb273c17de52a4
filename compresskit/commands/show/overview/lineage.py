"""Which run started from which: checkpoints are known by their hashes, wherever they lie."""

from collections.abc import Sequence
from pathlib import Path

from compresskit.commands.show.overview.found import Run


class Lineage:
    """Of the runs given; of several that left the same checkpoint the first one counts."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = runs
        self._makers: dict[str, Run] = {}
        for run in runs:
            for checkpoint in run.checkpoints:
                self._makers.setdefault(checkpoint, run)

    def parents(self, run: Run) -> list[Run]:
        """The runs that it started from, each once."""
        made = [self._makers[parent] for parent in run.parents if parent in self._makers]
        return list({maker.folder: maker for maker in made if maker is not run}.values())

    def elsewhere(self, run: Run) -> list[str]:
        """Hashes of checkpoints that it started from and that none of the runs has left."""
        return [parent for parent in run.parents if parent not in self._makers]

    def trees(self) -> list[tuple[int, Run]]:
        """Of the runs that are related, each below the first of its parents: its generation, from 0 on, and the run."""
        below: dict[Path, list[Run]] = {}
        for run in self._runs:
            for parent in self.parents(run)[:1]:
                below.setdefault(parent.folder, []).append(run)
        lines: list[tuple[int, Run]] = []
        ahead = [(0, run) for run in reversed(self._runs) if run.folder in below and not self.parents(run)]
        while ahead:
            generation, run = ahead.pop()
            lines.append((generation, run))
            ahead += [(generation + 1, child) for child in reversed(below.get(run.folder, []))]
        return lines
