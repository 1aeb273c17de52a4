"""What `check_gpu.py` compares: verbs, sections of a recipe, nets, and how far two devices may differ."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

DATA = {"kind": "mnist-mini", "validation": 1000}
TRAIN = {"epochs": 1, "batch_size": 1500, "optimizer": {"kind": "adam", "lr": 2e-3}, "schedule": "constant"}
NETS: dict[str, dict[str, Any]] = {
    "cnn": {"kind": "convnet", "channels": [8, 16, 32], "kernel": 5},
    "resnet": {"kind": "resnet", "depth": 18, "width": 0.125},
    "mlp": {"kind": "mlp", "widths": [64, 32]},
    "vit": {
        "kind": "timm:vit_tiny_patch16_224",
        "arguments": {"img_size": 28, "patch_size": 7, "in_chans": 1, "embed_dim": 32, "depth": 2, "num_heads": 2},
    },
}

# Relative to the largest output or loss. torch lets convolutions on a GPU round float32 to ten bits (TF32), and so the
# activations that layers are fitted to: such rounding hides faults, and a few checks alone have it.
ROUNDED, LOSSES, FITTED = 3e-2, 1e-3, 1e-4


@dataclass(frozen=True)
class Check:
    """One verb with one section of a recipe, on one net. `of`: what is compared, see `DIFFERENCES`."""

    name: str
    verb: str
    net: str
    sections: dict[str, Any] = field(default_factory=dict)
    of: str = "outputs"
    tolerance: float = FITTED
    device_only: bool = False  # what a CPU does not do, against float32 on the CPU
    tf32: bool = False


def train(
    name: str, net: str = "resnet", tolerance: float = LOSSES, device_only: bool = False, **options: Any
) -> Check:
    return Check(f"train, {name}", "train", net, {"train": TRAIN | options}, "losses", tolerance, device_only)


def section(verb: str, name: str, net: str, **options: Any) -> Check:
    return Check(f"{verb}, {name}", verb, net, {verb: options})


def prune(name: str, net: str = "resnet", **options: Any) -> Check:
    asked: dict[str, Any] = {"target": {"macs": "60%"}, "samples": 1000} | options
    return section("prune", name, net, **asked)


def reconstruct(name: str, **options: Any) -> Check:
    asked: dict[str, Any] = {"keep": "60%", "samples": 1000} | options
    return section("reconstruct", name, "cnn", **asked)


def checks() -> Iterator[Check]:
    yield train("resnet")
    yield train("vit", "vit")
    yield train("bfloat16", precision="bfloat16", tolerance=ROUNDED)
    yield replace(train("float16", precision="float16", tolerance=ROUNDED), device_only=True)
    sections = {"train": TRAIN | {"precision": "bfloat16"}, "data": DATA | {"channels_last": True}}
    yield Check("train, bfloat16, channels last", "train", "resnet", sections, "losses", ROUNDED)
    yield train("compiled", "cnn", compile=True)
    yield train("layerwise rates", layerwise_rates={"metric": "alpha"})
    yield train("gradient confusion", "cnn", gradient_confusion={"pairs": 10})
    yield train("sao", "mlp", init={"kind": "sao", "degree": 4, "layers": ["fc2"]})
    yield train("masks, before", "mlp", mask={"kind": "weights", "when": "before", "target": {"sparsity": 0.9}})
    yield train("clipped, weight decay spared", clip_norm=1.0, decay_bias_and_norm=False)
    yield Check("finetune", "finetune", "resnet", {"finetune": TRAIN}, "losses", LOSSES)
    yield Check("evaluate", "evaluate", "resnet", of="figures")
    for solver in ("cholesky", "eigh", "cg"):
        yield section("fuse", solver, "cnn", layers=[["conv2", "conv3"]], solver=solver, samples=1000)
    yield section("fuse", "auto", "cnn", until={"layers": 3}, samples=1000)
    for criterion in ("magnitude", "hydra", "norm-scale", "taylor", "augprune", "random", "spectral-energy"):
        yield prune(criterion, criterion=criterion, images=256)
    for budget in ("global", "lamp", "erk", "spectral"):
        yield prune(f"{budget} budget", budget=budget)
    yield prune("top-down", repair="top-down")
    yield prune("vit", "vit", repair="top-down")
    yield prune("vit, heads and width", "vit", groups=["heads", "width", "hidden"])
    yield prune("weights", kind="weights", target={"sparsity": 0.8})
    yield prune("kernels", kind="kernels", target={"sparsity": 0.5})
    yield reconstruct("backward")
    yield reconstruct("top-down", chaining="top-down")
    yield reconstruct("target", keep=None, target={"params": "60%"})
    yield reconstruct("low rank", low_rank={"error": 0.01})
    for solver in ("newton", "admm", "fista", "alternating"):
        yield reconstruct(solver, selection={"kind": "group-lasso", "solver": solver, "points": 8})
    for strategy in ("cl", "ck", "acnet", "cl+fc"):
        sections = {"expand": {"strategy": strategy, "rate": 2, "init": "standard"}, "train": TRAIN}
        yield Check(f"expand, {strategy}", "expand", "cnn", sections, "losses", LOSSES)
    yield Check("spectra", "spectra", "resnet", {"spectra": {}}, "tables", 1e-6)
    yield Check("spectra, CKA", "spectra", "cnn", {"spectra": {"cka": {"samples": 512}}}, "tables", 1e-3)
    yield Check("spectra, isometry", "spectra", "mlp", {"spectra": {"isometry": {"images": 4}}}, "tables", 1e-3)
    for check in (train("resnet"), prune("magnitude"), reconstruct("backward")):
        yield replace(check, name=f"{check.name}, TF32", tolerance=ROUNDED, tf32=True)


SHARE = 0.8  # of the latency that is to be left, of a batch that keeps a GPU busy
LATENCY = Check(
    "prune, latency", "prune", "resnet",
    {
        "prune": {"target": {"latency": f"{SHARE:.0%}"}, "samples": 1000},
        "report": {"latency_batch": 2048, "latency_repeats": 10},
    },
    "latency", 0.05,
)  # fmt: skip
