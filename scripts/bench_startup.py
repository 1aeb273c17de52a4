"""Time of a whole `compresskit evaluate` against a script with torch alone that counts the same accuracy.

    python scripts/bench_startup.py [--repeats 7]

Both are processes of their own, in turn, with one thread. The script builds the network of configs/quickstart.yaml,
reads the weights out of the checkpoint and the test images out of the package, and prints the accuracy, which must be
the one that `evaluate` reports. Prints one JSON line: medians of seconds, their ratio, and what the packages take
that `evaluate` imports.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "configs/quickstart.yaml"
BARE = """
import sys
import numpy, torch
from torch import nn

layers = []
for wide, made in ((1, 8), (8, 16), (16, 32)):
    layers += [nn.Conv2d(wide, made, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(288, 10)).eval()
kept = torch.load(sys.argv[1], weights_only=True)["tensors"]
names = ("conv1", "conv2", "conv3", "head")
net.load_state_dict(dict(zip(net.state_dict(), (kept[f"{n}.{part}"] for n in names for part in ("weight", "bias")))))
data = numpy.load(sys.argv[2])
x, y = (torch.from_numpy(data[name]) for name in ("test_inputs", "test_targets"))
x = (x.float() / 255 - 0.1307) / 0.3081
right = 0
with torch.inference_mode():
    for start in range(0, len(x), 256):
        right += int((net(x[start : start + 256].unsqueeze(1)).argmax(1) == y[start : start + 256]).sum())
print(right / len(x))
"""


def environment() -> dict[str, str]:
    """One thread; and bytecode is kept, as it is where a package was installed: to compile it all takes 0.2 s."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run(*command: object) -> tuple[float, str]:
    """Seconds and output of a process."""
    start = time.perf_counter()
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True, env=environment())
    return time.perf_counter() - start, done.stdout


def slowest_imports(command: list[object], count: int = 8) -> dict[str, float]:
    """Seconds that the modules of each package take to import, without those of others that they import."""
    program = [str(command[0]), "-X", "importtime", *map(str, command[1:])]
    told = subprocess.run(program, capture_output=True, text=True, check=True, env=environment()).stderr
    own = re.findall(r"import time: +(\d+) \| +\d+ \| +(\S+)", told)
    totals: dict[str, float] = {}
    for microseconds, module in own:
        package = module.partition(".")[0]
        totals[package] = totals.get(package, 0.0) + int(microseconds) / 1e6
    return dict(sorted(totals.items(), key=lambda entry: -entry[1])[:count])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        trained = Path(folder) / "trained"
        program = [sys.executable, "-m", "compresskit"]
        run(*program, "train", RECIPE, "--out", trained, "--quiet")
        bare = [sys.executable, "-c", BARE, trained / "model.pt", ROOT / "compresskit/data/mnist-mini.npz"]
        ours = [*program, "evaluate", RECIPE, "--checkpoint", trained, "--json"]
        found = json.loads(run(*ours)[1])
        (accuracy,) = next(row["after"] for row in found["figures"] if row["name"] == "test accuracy")
        assert abs(float(run(*bare)[1]) - accuracy) < 1e-9, (run(*bare)[1], accuracy)
        times: dict[str, list[float]] = {"bare_s": [], "evaluate_s": [], "import_torch_s": []}
        for _ in range(repeats):
            times["bare_s"].append(run(*bare)[0])
            times["evaluate_s"].append(run(*ours)[0])
            times["import_torch_s"].append(run(sys.executable, "-c", "import torch")[0])
        medians = {name: statistics.median(values) for name, values in times.items()}
        imports = slowest_imports(ours)
    result = {"bench": "startup", **medians, "ratio": medians["evaluate_s"] / medians["bare_s"], "imports_s": imports}
    print(json.dumps(result | {"machine": platform.machine(), "python": platform.python_version()}))


if __name__ == "__main__":
    main()
