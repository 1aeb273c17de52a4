"""Pruning channels at equal MACs: `compresskit prune` against Torch-Pruning, fasterai and magnitude with our repair.

    python scripts/compare_rivals.py [KEY=VALUE ...] [--nets resnet18 ...] [--methods ours ...] [--sizes 70 50 30 20]
        [--epochs 1 3] [--runs runs] [--cells runs/rivals]      measures what is missing
    python scripts/compare_rivals.py --page [--cells runs/rivals]
        writes docs/results/raw/rivals.json and docs/pictures/rivals-NET.png; then scripts/make_docs_results.py

A net is a recipe of configs/rivals, trained by `compresskit train configs/rivals/NET.yaml` into runs/NET-train.
KEY=VALUE changes all recipes, as on the command line. A cell is a net, a method and a size; it has a folder in --cells,
is written as soon as it is known, and is not measured again while its file is there, but for epochs that it lacks. The
cell of a method that failed says so, too.

All methods get the same net, the same training images to measure on (`prune.samples`), and at most the same MACs: of
packages the largest net that a search over their ratio finds. Where a method has settings (each layer alone, or all
together), validation images choose, never the test set. Norms are estimated on the same images for all, and every net
is fine-tuned by the recipe's `finetune` from what its method left.

Packages are measured where they can be imported; `pip install -e '.[rivals]'` brings them.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from rivals.bench import Bench
from rivals.cells import MODEL, read_original, write_original
from rivals.measure import measure
from rivals.methods import METHODS, lacking
from rivals.page import write_page

ROOT = Path(__file__).parents[1]


def main() -> int:
    arguments = parsed()
    recipes = {path.stem: path for path in sorted(arguments.recipes.glob("*.yaml"))}
    if unknown := [name for name in arguments.nets if name not in recipes]:
        raise SystemExit(
            f"--nets: {', '.join(unknown)}: no recipe in {arguments.recipes}, which has {', '.join(recipes)}"
        )
    if arguments.page:
        for path in write_page(arguments.cells, recipes, arguments.docs):
            print(path)
        return 0
    warnings.simplefilter("ignore")  # packages warn of their own affairs
    torch.set_num_threads(arguments.threads)
    methods = importable(arguments.methods)
    failed = 0
    for name in arguments.nets or recipes:
        checkpoint = arguments.runs / f"{name}-train" / MODEL
        if not checkpoint.exists():
            say(f"{name}: no {checkpoint}; compresskit train {recipes[name]} makes it")
            failed += 1
            continue
        bench = Bench(recipes[name], checkpoint, arguments.overrides)
        note_original(bench, arguments.cells)
        for size in arguments.sizes:
            for method in methods:
                cell = measure(bench, method, size, arguments.epochs, arguments.cells)
                stages = ", ".join(f"{stage['stage']} {stage['accuracy']:.4f}" for stage in cell.stages)
                say(f"{name}, {size:g} % of the MACs, {METHODS[method].label}: {cell.failed or stages}")
                failed += cell.failed is not None
    return 1 if failed else 0


def note_original(bench: Bench, cells: Path) -> None:
    """What is told of the trained net, among its cells. Raises SystemExit for cells of other weights or settings."""
    kept = read_original(cells, bench.name)
    if kept is None:
        write_original(cells, bench.name, bench.original)
    elif kept["made_of"] != bench.made_of:
        raise SystemExit(
            f"{cells / bench.name}: its cells are of other weights, data or settings of prune and finetune; remove it, "
            "or name another folder as --cells"
        )


def importable(asked: Sequence[str]) -> list[str]:
    """The methods that can run here; of the others it is said what is missing."""
    found = []
    for name in asked:
        if missing := lacking(METHODS[name]):
            say(f"{name}: left out: {', '.join(missing)} cannot be imported; pip install 'compresskit[rivals]'")
        else:
            found.append(name)
    return found


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to all recipes")
    parser.add_argument("--nets", nargs="+", default=[], metavar="NET", help="default: every recipe")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--sizes", nargs="+", type=float, default=[70, 50, 30, 20], help="per cent of the MACs")
    parser.add_argument("--epochs", nargs="*", type=int, default=[1, 3], help="of fine-tuning; none: without")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--recipes", type=Path, default=ROOT / "configs" / "rivals")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the trained nets' runs")
    parser.add_argument("--cells", type=Path, default=Path("runs/rivals"))
    parser.add_argument("--page", action="store_true", help="write figures and pictures instead")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="of --page")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
