"""Time of a path of 20 lambdas of the group lasso to a certified relative gap, ours against public solvers.

    python scripts/bench_reconstruct.py --root DATA [--threads 1] [--layers NAME ...] [--solvers NAME ...] [--limit 60]
        [--checkpoint-300 model.pt] [--checkpoint-5 model.pt]

Layers are those of LeNet-300-100 and LeNet-5 on MNIST's moments (nets without a checkpoint are trained first, for two
epochs), and conv512: 512 channels of a 3x3 convolution with 512 outputs, R of a random basis with a spectrum that falls
to 1e-6, its channels scaled apart over two decades. The path is geometric from 0.9 to 0.001 lam_max: there a
LeNet-300-100 keeps 60 % of its pixels and 75 % of its first units, about what costs it no accuracy.

Prints one JSON line: for each layer, solver and gap the seconds, or ">limit", or "missed" where its tightest setting
ends with a larger gap. Every weight that a solver returns, ours too, is certified before its time counts: the worst gap
of the path must be within what was asked. Rivals are given the reduced problem, as a design X = sqrt(n) R^1/2 and
targets sqrt(n) R^-1/2 B^T, so that their objective is ours; their `tol` is lowered tenfold until the certified gap is
reached, and the run that reached it is the one timed. scikit-learn, celer and skglm know a group lasso of several
outputs for single inputs alone, so convolutions have no rival among them.
"""

import argparse
import json
import multiprocessing
import platform
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, fx

from compresskit.data.dataset import DataSet
from compresskit.data.named import MNIST
from compresskit.graph.trace import trace
from compresskit.models.plain.lenet import LeNet5, LeNet300100
from compresskit.numerics.group_lasso.path import Descent, geometric
from compresskit.numerics.group_lasso.problem import Part, Problem, Weights, certify, reduce
from compresskit.numerics.group_lasso.solvers import SOLVERS
from compresskit.passes.moments import collect
from compresskit.passes.reconstruct.options import Reconstruct
from compresskit.passes.reconstruct.readers import plan
from compresskit.storage.checkpoint import load_network
from compresskit.training.loop import fit
from compresskit.training.options import Training

GAPS = (1e-4, 1e-6)
POINTS, SMALLEST = 20, 0.001  # of the path; SMALLEST as a share of lam_max
NETS = {"lenet-300-100": LeNet300100(), "lenet-5": LeNet5()}
LENET_LAYERS = tuple(f"lenet-300-100.{layer}" for layer in ("fc1", "fc2", "head")) + tuple(
    f"lenet-5.{layer}" for layer in ("conv2", "fc1", "head")
)
LAYERS = (*LENET_LAYERS, "conv512")
TOLS = [10.0**-power for power in range(2, 15)]  # settings of a rival, loosest first

Descending = Callable[[float], Iterable[Weights]]  # tolerance -> the weights of each lam in turn


def lams_of(problem: Problem) -> list[float]:
    return geometric(0.9 * problem.lam_max, SMALLEST * problem.lam_max, POINTS)


def ours(problem: Problem, kind: str) -> Descending:
    def path(tol: float) -> Iterable[Weights]:
        descent = Descent(problem, SOLVERS[kind](tol=tol))
        return (descent.at(lam).weights for lam in lams_of(problem))

    return path


def rival(problem: Problem, kind: str) -> Descending:
    """Warm-started down the path; the design is made outside the time that counts."""
    reduction = reduce(problem)
    (part,) = reduction.problem.parts
    values, vectors = torch.linalg.eigh(part.cxx)
    kept = values > 1e-13 * values[-1]
    root, basis = values[kept].sqrt(), vectors[:, kept]
    scale = len(root) ** 0.5
    design = np.asfortranarray((scale * root * basis).T.numpy())
    targets = np.asfortranarray((scale / root * (part.cyx @ basis)).T.numpy())

    def path(tol: float) -> Iterable[Weights]:
        for weight in RIVALS[kind](design, targets, lams_of(problem), tol):
            yield reduction.restore([torch.from_numpy(np.ascontiguousarray(weight))])

    return path


def by_sklearn(design: np.ndarray, targets: np.ndarray, lams: list[float], tol: float) -> Iterable[np.ndarray]:
    from sklearn.linear_model import MultiTaskLasso

    model = MultiTaskLasso(tol=tol, fit_intercept=False, warm_start=True, max_iter=10_000_000)
    return (model.set_params(alpha=lam).fit(design, targets).coef_ for lam in lams)


def by_celer(design: np.ndarray, targets: np.ndarray, lams: list[float], tol: float) -> Iterable[np.ndarray]:
    """By its function: celer 0.7.4's MultiTaskLasso does not run with scikit-learn 1.9."""
    from celer.homotopy import mtl_path

    _, weights, _ = mtl_path(design, targets, alphas=lams, tol=tol, max_iter=1000)
    return np.moveaxis(weights, -1, 0)


def by_skglm(design: np.ndarray, targets: np.ndarray, lams: list[float], tol: float) -> Iterable[np.ndarray]:
    """Its tolerance is on the optimality conditions, here in units of the first lam."""
    from skglm import MultiTaskLasso

    model = MultiTaskLasso(tol=tol * lams[0], fit_intercept=False, warm_start=True, max_iter=1000)
    return (model.set_params(alpha=lam).fit(design, targets).coef_ for lam in lams)


RIVALS = {"scikit-learn": by_sklearn, "celer": by_celer, "skglm": by_skglm}


def run(problem: Problem, path: Descending, tol: float, sender: Connection) -> None:
    """Sends (seconds, worst certified gap of the path)."""
    warnings.simplefilter("ignore")  # rivals warn where they stop early; the certificate tells
    start = time.perf_counter()
    found = list(path(tol))
    seconds = time.perf_counter() - start
    sender.send((seconds, max(certify(problem, w, lam).gap for w, lam in zip(found, lams_of(problem), strict=True))))


def attempt(problem: Problem, path: Descending, tol: float, limit: float) -> tuple[float, float] | None:
    """What `run` sends; None where it takes longer than `limit` seconds. In a process of its own: rivals cannot be
    interrupted otherwise."""
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=run, args=(problem, path, tol, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv() if receiver.poll(limit) else None
    except EOFError:
        raise SystemExit("a solver failed; its error is above") from None
    finally:
        process.terminate()
        process.join()


def times(problem: Problem, path: Descending, tols: Sequence[float], limit: float) -> dict[str, float | str]:
    """Seconds by gap: of the loosest tolerance that reaches it."""
    left, result = list(GAPS), dict[str, float | str]()
    for tol in tols:
        found = attempt(problem, path, tol, limit)
        if found is None:
            return result | {f"{gap:.0e}": f">{limit:g}" for gap in left}
        seconds, gap = found
        for reached in [wanted for wanted in left if gap <= wanted]:
            result[f"{reached:.0e}"] = round(seconds, 3)
            left.remove(reached)
        if not left:
            break
    return result | {f"{gap:.0e}": "missed" for gap in left}


def lenet(name: str, checkpoint: Path | None, data: DataSet) -> fx.GraphModule:
    if checkpoint is not None:
        return load_network(checkpoint)
    torch.manual_seed(0)
    network = trace(NETS[name].build(data.input_shape, data.outputs))
    with tempfile.TemporaryDirectory() as folder:
        fit(network, data, Training(epochs=2), seed=0, device=torch.device("cpu"), folder=Path(folder))
    return network


def lenet_problems(name: str, checkpoint: Path | None, data: DataSet, images: int) -> dict[str, Problem]:
    """By NET.LAYER; moments of `images` of the training images."""
    network = lenet(name, checkpoint, data)
    planned = plan(network, data.input_shape, Reconstruct(input_sampler=True, keep="50%"))
    sums = {reader.request.name: reader.request.zeros("cpu") for reader in planned.readers}
    batches = list(data.train.sample(images).batches(500, torch.device("cpu")))
    collect(network, [reader.request for reader in planned.readers], batches, sums)
    moments = {key: value.finish() for key, value in sums.items()}
    return {f"{name}.{site.name}": site.problem(moments, relative=False) for site in planned.sites}


def conv512() -> Problem:
    generator = torch.Generator().manual_seed(0)
    channels, taps = 512, 9
    size = channels * taps

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    basis = torch.linalg.qr(normal(size, size))[0] * torch.logspace(0, -3, size, dtype=torch.float64)
    basis *= torch.logspace(0, -1, channels, dtype=torch.float64).repeat_interleave(taps)[:, None]
    cxx = basis @ basis.T
    weight = normal(channels, size)
    cyx = weight @ cxx
    groups = torch.arange(channels).repeat_interleave(taps)
    return Problem((Part(cxx, cyx, groups),), float((weight * cyx).sum()), channels)


def problems(arguments: argparse.Namespace) -> dict[str, Problem]:
    found = {}
    checkpoints = {"lenet-300-100": arguments.checkpoint_300, "lenet-5": arguments.checkpoint_5}
    for name, checkpoint in checkpoints.items():
        if any(layer.startswith(f"{name}.") for layer in arguments.layers):
            data = MNIST(root=str(arguments.root)).load(0)
            found |= lenet_problems(name, checkpoint, data, arguments.images)
    if "conv512" in arguments.layers:
        found["conv512"] = conv512()
    return {layer: found[layer] for layer in arguments.layers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=LAYERS)
    parser.add_argument("--solvers", nargs="+", choices=(*SOLVERS, *RIVALS), default=(*SOLVERS, *RIVALS))
    parser.add_argument("--limit", type=float, default=60.0, help="seconds of one path")
    parser.add_argument("--images", type=int, default=10_000, help="that moments are taken of")
    parser.add_argument("--checkpoint-300", type=Path)
    parser.add_argument("--checkpoint-5", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if "skglm" in arguments.solvers:  # numba compiles it at its first call
        list(by_skglm(np.asfortranarray(np.eye(3)), np.asfortranarray(np.eye(3)), [0.1], 1e-4))
    layers = {}
    for name, problem in problems(arguments).items():
        single = problem.n_groups == sum(len(part.groups) for part in problem.parts)
        layers[name] = {"inputs": len(problem.parts[0].groups), "groups": problem.n_groups}
        for kind in arguments.solvers:
            if kind in SOLVERS:  # its tolerance is the gap
                found: dict[str, float | str] = {}
                for gap in GAPS:
                    own = times(problem, ours(problem, kind), [gap], arguments.limit)
                    found[f"{gap:.0e}"] = own[f"{gap:.0e}"]
                layers[name][kind] = found
            elif single:
                layers[name][kind] = times(problem, rival(problem, kind), TOLS, arguments.limit)
    result = {
        "bench": "reconstruct",
        "points": POINTS,
        "smallest": SMALLEST,
        "limit_s": arguments.limit,
        "images": arguments.images,
        **layers,
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {"python": platform.python_version(), "torch": torch.__version__}
        | {name: version(name) for name in RIVALS},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
