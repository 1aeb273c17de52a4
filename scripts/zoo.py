"""How every verb takes a list of nets that others have made, one process each, with a limit of time and memory.

    python scripts/zoo.py timm:resnet18 torchvision:swin_t my_nets.py:make      # nets by name
    python scripts/zoo.py --timm --torchvision                                   # the smallest of every family
    python scripts/zoo.py --out zoo.jsonl --table                                # the table of what is in the file

A net goes through: coming in (door, seconds, difference in eval and in training mode), the table of a checkpoint and
back, a random cut against the net that does not see what is dead (float64), half of its MACs by magnitude, spectra,
expanding and contracting, export as a program of torch; and Torch-Pruning's way to half of the MACs, beside. A stage
that fails gives one line; rows are appended to the file as they are done, and those that it has are not done again.
Weights are drawn, statistics of batch norms too, so that nothing hides behind zeros. Needs timm; --rival needs
torch-pruning (both are in the extra `bench`).
"""

import argparse
import copy
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from torch import nn

MEMORY = 12  # GB of address space beside what importing takes
COLUMNS = ("net", "M params", "GMACs", "door", "s", "eval", "train", "saved", "law", "atoms", "at 50 %", "s to cut")


def main() -> None:
    arguments = parsed()
    if arguments.one:
        limit_memory()
        examined(arguments.one, arguments.rival, lambda found: print(json.dumps(found), flush=True))
        return
    names = list(arguments.nets)
    names += [f"timm:{name}" for name in smallest_of_timm()] if arguments.timm else []
    names += [f"torchvision:{name}" for name in smallest_of_torchvision()] if arguments.torchvision else []
    done = read(arguments.out)
    waiting = [name for name in dict.fromkeys(names) if name not in done]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for finished in as_completed([pool.submit(in_its_own_process, name, arguments) for name in waiting]):
            found = finished.result()
            done[found["net"]] = found
            with arguments.out.open("a") as file:
                file.write(json.dumps(found) + "\n")
            print(row(found), flush=True)
    if arguments.table:
        print(table(list(done.values())))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="*", help="timm:NAME, torchvision:NAME or FILE.py:FUNCTION")
    parser.add_argument("--timm", action="store_true", help="the smallest net of every family of timm")
    parser.add_argument("--torchvision", action="store_true", help="the smallest net of every family of torchvision")
    parser.add_argument("--out", type=Path, default=Path("zoo.jsonl"), help="where rows are kept  [zoo.jsonl]")
    parser.add_argument("--limit", type=int, default=300, help="seconds for a net  [300]")
    parser.add_argument("--jobs", type=int, default=1, help="nets at a time, of OMP_NUM_THREADS threads each  [1]")
    parser.add_argument("--rival", action="store_true", help="Torch-Pruning beside it")
    parser.add_argument("--table", action="store_true", help="print the table of all rows in the file")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def read(path: Path) -> dict[str, dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {found["net"]: found for found in rows}


def in_its_own_process(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The net's row; where its process was stopped or died, what was known by then and at which stage it was."""
    command = [sys.executable, __file__, "--one", name, *(["--rival"] if arguments.rival else [])]
    started = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=arguments.limit)
    except subprocess.TimeoutExpired as error:
        told, lost = (error.stdout or b"").decode(), f"not done after {arguments.limit} s"
    else:
        last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        told, lost = done.stdout, f"exit {done.returncode}: {last[:300]}" if done.returncode else ""
    lines = [line for line in told.splitlines() if line.startswith("{")]
    found = json.loads(lines[-1]) if lines else {"net": name, "stage": "start"}
    if lost:
        found["failed " + found["stage"] if "door" in found else "failed"] = lost
    return {**found, "wall": round(time.monotonic() - started, 1)}


def limit_memory() -> None:
    warnings.filterwarnings("ignore")
    limit = MEMORY * 2**30 + 40 * 2**30  # libraries of CUDA take room without memory
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def examined(
    name: str, rival: bool = False, say: Callable[[dict[str, Any]], None] = lambda found: None
) -> dict[str, Any]:
    """All that is found out about one net; `say` hears before each stage what is known by then."""
    found: dict[str, Any] = {"net": name}
    for stage in stages(name, rival):
        say(found | {"stage": stage.__name__})
        try:
            found |= stage(found)
        except Exception as error:
            known = type(error).__module__.startswith("compresskit")
            text = (str(error).splitlines() or [""])[0][:400]
            told = text if known else f"{type(error).__name__}: {text}"
            found |= {f"failed {stage.__name__}": told if known else f"TRACEBACK {told}"}
            if stage.__name__ in ("made", "came_in"):
                found |= {"failed": told, "stage": stage.__name__}
                break
    say(found | {"stage": "end"})
    return found


def stages(name: str, rival: bool) -> Iterator[Callable[[dict[str, Any]], dict[str, Any]]]:
    from compresskit.graph.channels.cut import cut
    from compresskit.graph.channels.kept import kept_norms
    from compresskit.graph.channels.plain import plain_layers
    from compresskit.graph.channels.walk import find_channels
    from compresskit.graph.counting import count
    from compresskit.graph.doors.prepared import prepared
    from compresskit.graph.doors.self_check import check_eval, check_training
    from compresskit.graph.format.table import from_table, to_table
    from compresskit.graph.shapes import example
    from compresskit.graph.trace import trace
    from compresskit.graph.weights import weights_of
    from compresskit.passes.expand.network import contract, expand
    from compresskit.passes.expand.options import Expand
    from compresskit.passes.prune.channels import Data, Pruner
    from compresskit.passes.prune.options import Prune, PruneTarget
    from compresskit.passes.spectra.options import Spectra
    from compresskit.passes.spectra.weights import spectra
    from compresskit.storage.checkpoint import Checkpoint, load, save

    kept: dict[str, Any] = {}

    def made(found: dict[str, Any]) -> dict[str, Any]:
        kept["net"], kept["shape"] = make(name)
        return {"shape": kept["shape"], "params": sum(p.numel() for p in kept["net"].parameters())}

    def came_in(found: dict[str, Any]) -> dict[str, Any]:
        network = kept["network"] = trace(kept["net"], kept["shape"], output=output_of(name))
        entry = network.meta["entry"]
        network.eval()
        macs = count(network, kept["shape"]).macs
        return {"door": entry.door, "seconds": round(entry.seconds, 2), "assumed": entry.assumed, "macs": macs}

    def compared(found: dict[str, Any]) -> dict[str, Any]:
        module, network = prepared(kept["net"], 1, output_of(name)), kept["network"]
        batches = [example(network, kept["shape"], n, torch.Generator().manual_seed(n)) for n in (2, 3)]
        return {
            "eval": " ".join(check_eval(module, network, batches)) or "equal",
            "train": " ".join(check_training(module, network, batches[0])) or "equal",
        }

    def saved(found: dict[str, Any]) -> dict[str, Any]:
        network, path = kept["network"], Path(tempfile.gettempdir(), f"zoo-{os.getpid()}.pt")
        try:
            save(Checkpoint(network, {}, kept["shape"], "classification", {}, []), path)
            x = example(network, kept["shape"], 2, torch.Generator().manual_seed(0))
            with torch.no_grad():
                equal = torch.equal(load(path).network(x), network.eval()(x))
        finally:
            path.unlink(missing_ok=True)
        from_table(to_table(network))
        return {"saved": "equal" if equal else "DIFFERENT"}

    def law(found: dict[str, Any]) -> dict[str, Any]:
        network = plain_layers(copy.deepcopy(kept["network"]).double().eval(), kept["shape"])[0]
        started = time.monotonic()
        channels = find_channels(network, kept["shape"])
        seconds = time.monotonic() - started
        sizes = dict(network.named_parameters())
        free = torch.ones(channels.n_atoms, dtype=torch.bool)
        free[list(channels.frozen)] = False
        cuttable = {tensor for (tensor, _), atoms in channels.slots.items() if bool(free[atoms].any())}
        share = sum(p.numel() for n, p in sizes.items() if n in cuttable) / sum(p.numel() for p in sizes.values())
        alive = thinned(channels, free)
        small, whole = cut(network, channels, alive), kept_norms(network, channels, alive)
        x = example(network, kept["shape"], 2, torch.Generator().manual_seed(0))
        with torch.no_grad():
            one, other = small(x), whole(x)
        worst = float((one - other).abs().max() / other.abs().max().clamp(min=1e-30))
        from_table(to_table(small))
        return {"atoms_s": round(seconds, 3), "cuttable": round(share, 3), "law": worst}

    def halved(found: dict[str, Any]) -> dict[str, Any]:
        started = time.monotonic()
        options = Prune(target=PruneTarget(macs="50%"), repair="none", norms=False)
        network = plain_layers(kept["network"], kept["shape"])[0]
        pruner = Pruner(network, options, kept["shape"])
        pruned = pruner.prune(Data(), 0)
        small = cut(network, pruned.channels, pruned.alive)
        macs = count(small, kept["shape"]).macs
        with torch.no_grad():
            small.eval()(example(small, kept["shape"], 2))
        from_table(to_table(small))
        return {"half": round(macs / found["macs"], 4), "half_s": round(time.monotonic() - started, 2)}

    def spectral(found: dict[str, Any]) -> dict[str, Any]:
        weights = [weight for weight in weights_of(kept["network"])[0] if weight.tensor.numel() < 2**20][:12]
        rows, _ = spectra(weights, Spectra(null="none"), seed=0)
        return {"spectra": len(rows)}

    def expanded(found: dict[str, Any]) -> dict[str, Any]:
        network = kept["network"]
        grown = expand(network, Expand(strategy="cl+fc", rate=2.0, mode="sequential"))
        x = example(network, kept["shape"], 2, torch.Generator().manual_seed(0))
        whole = grown.network.double().eval()
        with torch.no_grad():
            one, other = whole(x.double()), contract(whole)(x.double())
        return {"expand": float((one - other).abs().max() / other.abs().max().clamp(min=1e-30))}

    def exported(found: dict[str, Any]) -> dict[str, Any]:
        from compresskit.storage.exported.program import write_program

        path = Path(tempfile.gettempdir(), f"zoo-{os.getpid()}.pt2")
        x = example(kept["network"], kept["shape"], 2, torch.Generator().manual_seed(0))
        try:
            with torch.no_grad():
                read_back = write_program(kept["network"].eval(), x, path)(x)
                difference = float((read_back - kept["network"](x)).abs().max())
        finally:
            path.unlink(missing_ok=True)
        return {"export": difference}

    def torch_pruning(found: dict[str, Any]) -> dict[str, Any]:
        return {"rival": rivals_half(kept["net"], kept["shape"])}

    yield from (made, came_in, compared, saved, law, halved, spectral, expanded, exported)
    if rival:
        yield torch_pruning


def make(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """The net with drawn statistics, and the shape of its samples."""
    torch.manual_seed(0)
    home, _, rest = name.partition(":")
    shape: tuple[int, ...] = (3, 224, 224)
    if home == "timm":
        import timm

        net = timm.create_model(rest)
        shape = tuple(net.default_cfg["input_size"])
    elif home == "torchvision":
        import torchvision

        backbones = {"weights_backbone": None} if "_" in rest and is_dense(rest) else {}
        net = torchvision.models.get_model(rest, weights=None, **backbones)
        shape = (3, 299, 299) if rest == "inception_v3" else shape
    else:
        spec = importlib.util.spec_from_file_location("nets", home)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        net, shape = getattr(module, rest)()
    for each in net.modules():
        if isinstance(each, nn.modules.batchnorm._BatchNorm) and each.running_mean is not None:
            nn.init.uniform_(each.running_mean, -0.2, 0.2)
            nn.init.uniform_(each.running_var, 0.5, 1.5)
    return net, shape


def is_dense(name: str) -> bool:
    return any(part in name for part in ("deeplab", "fcn", "lraspp"))


def output_of(name: str) -> str | None:
    return "out" if is_dense(name) else None


def thinned(channels: Any, free: torch.Tensor) -> torch.Tensor:
    """Alive atoms, (n,) bool: a third of those that may go is dead, and one at least of every slot is not."""
    generator = torch.Generator().manual_seed(0)
    alive = ~free | (torch.rand(len(free), generator=generator) > 0.33)
    for atoms in channels.slots.values():
        if not bool(alive[atoms].any()):
            alive[atoms[0]] = True
    return alive


def rivals_half(net: nn.Module, shape: tuple[int, ...]) -> str:
    """The share of MACs that Torch-Pruning leaves of those that it counts, or why not."""
    import torch_pruning

    x = torch.randn(1, *shape)
    net = net.eval()
    try:
        before, _ = torch_pruning.utils.count_ops_and_params(net, x)
        last = [m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1:]
        heads = {m.qkv: m.num_heads for m in net.modules() if hasattr(m, "qkv") and hasattr(m, "num_heads")}
        pruner = torch_pruning.pruner.MagnitudePruner(
            net, x, importance=torch_pruning.importance.MagnitudeImportance(p=2), pruning_ratio=0.9, iterative_steps=30,
            ignored_layers=last, round_to=1, **({"num_heads": heads} if heads else {}),
        )  # fmt: skip
        after = before
        for _ in range(30):
            pruner.step()
            after, _ = torch_pruning.utils.count_ops_and_params(net, x)
            if after <= before / 2:
                break
        net(x)
    except Exception as error:  # whatever it makes of the net
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"
    return f"{after / before:.4f}"


def smallest_of_timm() -> list[str]:
    """The net with the fewest parameters of every module of timm."""
    import timm
    from timm.models import _registry

    best: dict[str, tuple[int, str]] = {}
    for name in timm.list_models():
        try:
            with torch.device("meta"):
                size = sum(p.numel() for p in timm.create_model(name).parameters())
        except Exception:  # nets that cannot be made without numbers
            continue
        family = _registry._model_to_module[name]
        best[family] = min(best.get(family, (size, name)), (size, name))
    return [name for _, name in best.values()]


def smallest_of_torchvision() -> list[str]:
    return (
        "alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 maxvit_t "
        "mnasnet0_5 mobilenet_v2 mobilenet_v3_small regnet_x_400mf regnet_y_400mf resnet18 resnext50_32x4d "
        "shufflenet_v2_x0_5 squeezenet1_1 swin_t swin_v2_t vgg11 vgg11_bn vit_b_32 wide_resnet50_2 fcn_resnet50 "
        "lraspp_mobilenet_v3_large deeplabv3_mobilenet_v3_large"
    ).split()


def row(found: dict[str, Any]) -> str:
    name = found["net"].partition(":")[2]
    if "door" not in found:
        return f"| {name} | {found.get('failed', '')} |" + " |" * (len(COLUMNS) - 2)
    failed = {key.removeprefix("failed "): told for key, told in found.items() if key.startswith("failed ")}

    def shown(key: str, stage: str, form: str = "") -> str:
        return f"{found[key]:{form}}" if key in found else failed.get(stage, "not done")[:60]

    cells = [
        name, f"{found['params'] / 1e6:.1f}", f"{found['macs'] / 1e9:.2f}", found["door"], f"{found['seconds']:.1f}",
        shown("eval", "compared"), shown("train", "compared"), shown("saved", "saved"), shown("law", "law", ".0e"),
        shown("cuttable", "law", ".0%"), shown("half", "halved", ".1%"), shown("half_s", "halved"),
    ]  # fmt: skip
    return "| " + " | ".join(cells + ([found["rival"]] if "rival" in found else [])) + " |"


def table(rows: list[dict[str, Any]]) -> str:
    columns = [*COLUMNS, "Torch-Pruning"] if any("rival" in found for found in rows) else list(COLUMNS)
    head = "| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns)
    return "\n".join([head, *(row(found) for found in rows)])


if __name__ == "__main__":
    main()
