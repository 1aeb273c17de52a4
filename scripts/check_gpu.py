"""Every verb on a GPU against the CPU, and the times that a GPU is bought for: a JSON file and a page in Markdown.

    python scripts/check_gpu.py [--out build/gpu] [--only prune train] [--no-bench] [--device cuda]

Runs on the images that come with the package, without a network, in about six minutes. Each check runs a verb on the
CPU and on the device, from the same checkpoint and seed, and compares what the two nets answer to the same images, or
the losses of the last epoch where both train. --device cpu compares the CPU with itself, which tries the script out.
The exit status is 1 if a check fails.
"""

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from gpu.benches import benched
from gpu.checks import Check, checks
from gpu.runs import Runs, killed_and_resumed, latency_reached, two_processes


def checked(runs: Runs, asked: list[Check], jobs: int, *, whole: bool) -> Iterator[dict[str, Any]]:
    """Rows as they come; those that others would disturb come last, one by one."""
    runs.make_parents(asked)
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=one_thread) as pool:
        for finished in as_completed([pool.submit(runs.compared, check) for check in asked]):
            yield finished.result()
    if whole:
        yield latency_reached(runs)
        yield killed_and_resumed(runs)
        yield two_processes(runs)


def one_thread() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")


def page(result: dict[str, Any]) -> str:
    lines = [
        f"{result['card']}, torch {result['torch']}, Python {result['python']}.", "",
        "| check | compared | difference | at most | s, CPU | s, device |", "| --- | --- | --- | --- | --- | --- |",
        *map(line, result["checks"]), "",
    ]  # fmt: skip
    return "\n".join([*lines, *map(bench_line, result["benches"])]) + "\n"


def line(row: dict[str, Any]) -> str:
    told = row.get("failed") or row.get("skipped")
    shown = f"{row['difference']:.0e}" if "difference" in row else " ".join(str(told).split())[-160:]
    mark = " **failed**" if "failed" in row else ""
    cells = [row["check"] + mark, row.get("of", ""), shown, row.get("tolerance", "")]
    return "| " + " | ".join(map(str, [*cells, row.get("s_cpu", ""), row.get("s_device", "")])) + " |"


def bench_line(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"- {row['bench']} **failed**: {' '.join(row['failed'].split())[-160:]}"
    return f"- {row['bench']}: " + ", ".join(
        f"{name} {value}" for name, value in row["found"].items() if name != "bench"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), help="folder of gpu.json and gpu.md")
    parser.add_argument("--only", nargs="+", default=[""], help="checks whose names begin so")
    parser.add_argument("--jobs", type=int, default=max(1, min(8, (os.cpu_count() or 2) // 2)), help="checks at a time")
    parser.add_argument("--no-bench", action="store_true")
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU here; --device cpu tries the script out")
    warnings.filterwarnings("ignore")
    folder = Path(tempfile.mkdtemp(prefix="check-gpu-"))
    runs = Runs(folder, arguments.device)
    asked = [check for check in checks() if check.name.startswith(tuple(arguments.only))]
    card = torch.cuda.get_device_name() if arguments.device == "cuda" else platform.processor() or platform.machine()
    result: dict[str, Any] = {"card": card, "torch": torch.__version__, "python": platform.python_version()}
    result |= {"checks": [], "benches": []}
    found = {"checks": checked(runs, asked, arguments.jobs, whole=arguments.only == [""])}
    found |= {} if arguments.no_bench else {"benches": benched(arguments.device)}
    arguments.out.mkdir(parents=True, exist_ok=True)
    for part, some in found.items():
        for row in some:
            print(json.dumps(row), flush=True)
            result[part].append(row)
            (arguments.out / "gpu.json").write_text(json.dumps(result, indent=1))  # what there is, should it be stopped
    order = [check.name for check in asked]
    result["checks"].sort(key=lambda row: order.index(row["check"]) if row["check"] in order else len(order))
    (arguments.out / "gpu.md").write_text(page(result))
    print(page(result))
    rows = [*result["checks"], *result["benches"]]
    failed = [row for row in rows if "failed" in row]
    if failed:
        print(f"failed: {len(failed)} of {len(rows)}; what they wrote is in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
