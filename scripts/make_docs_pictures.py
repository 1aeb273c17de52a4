"""Makes the pictures of the documentation: real runs of configs/docs-pictures.yaml, whose plots go to docs/pictures/.

python scripts/make_docs_pictures.py [--runs FOLDER]   (default: runs/docs; what is finished there is not run again)
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "configs" / "docs-pictures.yaml"
TRAINED = ("--checkpoint", "train")
RUNS: dict[str, tuple[str, ...]] = {  # folder of the run: verb and options
    "train": ("train",),
    "finetune": ("finetune", *TRAINED),
    "fuse": ("fuse", *TRAINED),
    "expand": ("expand",),
    "prune": ("prune", *TRAINED),
    "reconstruct": ("reconstruct", *TRAINED),
    "spectra": ("spectra", *TRAINED),
}
PICTURES = {  # in docs/pictures/: the plot of a run
    "quickstart-learning-curves.png": "train/learning-curves.png",
    "layer-rates.png": "finetune/layer-rates.png",
    "fuse-candidates.png": "fuse/candidates.png",
    "fuse-learning-curves.png": "fuse/learning-curves.png",
    "expand-training-curves.png": "expand/training-curves.png",
    "prune-pruning-ratios.png": "prune/pruning-ratios.png",
    "prune-comparison.png": "prune/comparison.png",
    "reconstruct-trade-off.png": "reconstruct/trade-off.png",
    "reconstruct-comparison.png": "reconstruct/comparison.png",
    "spectra-densities.png": "spectra/densities.png",
    "spectra-alpha-by-depth.png": "spectra/alpha-by-depth.png",
    "isometry-layer.png": "spectra/isometry-layer.png",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "docs")
    runs: Path = parser.parse_args().runs.resolve()
    runs.mkdir(parents=True, exist_ok=True)
    for folder, (verb, *options) in RUNS.items():
        if not (runs / folder / "report.json").exists():
            command = [sys.executable, "-m", "compresskit", verb, str(RECIPE), *options, "--out", folder]
            subprocess.run([*command, "--resume", "--force"], cwd=runs, check=True)
    for picture, plot in PICTURES.items():
        shutil.copyfile(runs / plot, ROOT / "docs" / "pictures" / picture)


if __name__ == "__main__":
    main()
