"""What `export` is asked for, and all that can be refused before anything is read."""

from dataclasses import dataclass
from pathlib import Path

from compresskit.errors import RecipeError, RunFolderError
from compresskit.storage.exported.onnx import check_onnx
from compresskit.storage.exported.source import weights_of

LAYOUTS = ("masked", "grouped")
FORMATS = (".pt", ".pt2", ".onnx", ".py")


@dataclass(frozen=True)
class Options:
    """The command line. model: a checkpoint, or the folder of a run."""

    model: Path
    out: Path
    layout: str = "masked"
    fold_norms: bool = False
    with_preprocessing: bool = False
    probabilities: bool = False
    force: bool = False

    def plain(self) -> dict[str, object]:
        """What was done to the network, as its history has it."""
        names = ("fold_norms", "with_preprocessing", "probabilities")
        return {"layout": self.layout} | {name: True for name in names if getattr(self, name)}

    def check(self, path: Path) -> None:
        """path: the checkpoint. Raises RecipeError, or RunFolderError where `out` may not be written."""
        layout, out = self.layout, self.out
        if layout not in LAYOUTS:
            raise RecipeError(f"--layout: {layout!r} was given; allowed: {', '.join(LAYOUTS)}")
        if out.suffix not in FORMATS:
            raise RecipeError(f"--out: {out} ends with {out.suffix or 'no suffix'}; allowed: {', '.join(FORMATS)}")
        for option, asked in (("with-preprocessing", self.with_preprocessing), ("probabilities", self.probabilities)):
            if asked and out.suffix == ".pt":
                raise RecipeError(f"--{option}: verbs do that to what a .pt file takes and gives; write another format")
        if out.suffix == ".onnx":
            check_onnx()
        if out.exists() and out.resolve() == path.resolve():
            raise RunFolderError(f"{out}: it is the input; write elsewhere with --out")
        for file in (out, weights_of(out)) if out.suffix == ".py" else (out,):
            if file.exists() and (file.is_dir() or not self.force):
                raise RunFolderError(f"{file}: it exists already; use --force to replace a file, or another --out")
