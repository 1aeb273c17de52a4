"""compresskit compresses neural networks from YAML recipes. Importing it is cheap: torch is loaded on first use."""

from typing import Any

__version__ = "0.2.0"
__all__ = [
    "__version__",
    "contract",
    "evaluate",
    "expand",
    "fuse",
    "load",
    "load_state",
    "prune",
    "reconstruct",
    "spectra",
]

_HOMES = {
    "load": ("compresskit.storage.checkpoint", "load_network"),
    "load_state": ("compresskit.storage.exported.state", "load_state"),
    "fuse": ("compresskit.passes.fuse.network", "fuse"),
    "reconstruct": ("compresskit.passes.reconstruct.network", "reconstruct_model"),
    "prune": ("compresskit.passes.prune.python", "prune_model"),
    "expand": ("compresskit.passes.expand.network", "expand_model"),
    "contract": ("compresskit.passes.expand.network", "contract_model"),
    "spectra": ("compresskit.passes.spectra.weights", "spectra_of_model"),
    "evaluate": ("compresskit.training.tasks.evaluation", "evaluate"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'compresskit' has no attribute {name!r}")
    from importlib import import_module

    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)
