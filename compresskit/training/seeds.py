"""Where random numbers come from: each epoch's are a function of the run's seed, so a resumed run draws the same."""

import hashlib
import os

import torch


def epoch_seed(seed: int, epoch: int, rank: int = 0) -> int:
    """Seed of one epoch in one process, 0 <= seed < 2^63; neighbours are unrelated."""
    digest = hashlib.sha256(f"{seed} {epoch} {rank}".encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


def set_determinism(seed: int, *, strict: bool = False) -> None:
    """Seeds torch's global generators and asks for algorithms that give the same tensors each time.

    strict: an operation that has no such algorithm is an error; otherwise torch warns of it and goes on.
    """
    # https://docs.nvidia.com/cuda/cublas/#results-reproducibility
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=not strict)
    # Filling every new tensor would only turn a read of uninitialised memory into NaN, at a price in time
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False  # it would pick algorithms by their speed on the day
    torch.manual_seed(seed)
