"""What `export` is asked for, and all that can be refused before anything is read."""

from dataclasses import dataclass
from pathlib import Path

from compresskit.commands.export.picture import picture_of
from compresskit.errors import RecipeError, RunFolderError
from compresskit.storage.exported.onnx import check_onnx, data_of
from compresskit.storage.exported.source import weights_of
from compresskit.storage.exported.state import STATES

BESIDE = {".py": weights_of, ".onnx": data_of}  # files with the weights of others
LAYOUTS = ("masked", "grouped")
QUANTIZED = ("int8",)
FORMATS = (".pt", ".pt2", ".onnx", ".py", *STATES)


@dataclass(frozen=True)
class Options:
    """The command line. model: a checkpoint, or the folder of a run."""

    model: Path
    out: Path
    layout: str = "masked"
    fold_norms: bool = False
    with_preprocessing: bool = False
    probabilities: bool = False
    quantize: str | None = None
    recipe: Path | None = None
    overrides: tuple[str, ...] = ()
    force: bool = False

    def plain(self) -> dict[str, object]:
        """What is done to the network, as its history has it."""
        names = ("fold_norms", "with_preprocessing", "probabilities")
        done: dict[str, object] = {"layout": self.layout} | {name: True for name in names if getattr(self, name)}
        return done | ({"quantize": self.quantize} if self.quantize else {})

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
            if asked and out.suffix in STATES:
                raise RecipeError(f"--{option}: a state dict holds weights alone; write .py, .pt2 or .onnx")
        self._check_quantize()
        if out.suffix == ".onnx":
            check_onnx()
        if out.exists() and out.resolve() == path.resolve():
            raise RunFolderError(f"{out}: it is the input; write elsewhere with --out")
        for file in (*files_of(out), *([picture_of(out)] if self.quantize else [])):
            if file.exists() and (file.is_dir() or not self.force):
                raise RunFolderError(f"{file}: it exists already; use --force to replace a file, or another --out")

    def _check_quantize(self) -> None:
        if self.quantize is None:
            if (self.recipe is not None or self.overrides) and self.out.suffix not in STATES:
                raise RecipeError(
                    "--recipe: it names the data to quantise by (add --quantize int8), or the model that a "
                    f"{' or '.join(STATES)} file is for; leave it out"
                )
            if self.overrides and self.recipe is None:
                raise RecipeError(f"{self.overrides[0]}: it changes a recipe; give that with --recipe, or leave it out")
            return
        if self.quantize not in QUANTIZED:
            raise RecipeError(f"--quantize: {self.quantize!r} was given; allowed: {', '.join(QUANTIZED)}")
        if self.out.suffix != ".onnx":
            raise RecipeError(f"--quantize: it is for .onnx files, and --out is {self.out}; name it so")
        if self.recipe is None:
            raise RecipeError("--quantize: it looks at training images, and tests; give their recipe with --recipe")


def files_of(out: Path) -> list[Path]:
    """All that may be written; weights lie beside source, and beside an .onnx file that cannot hold them."""
    return [out, BESIDE[out.suffix](out)] if out.suffix in BESIDE else [out]
