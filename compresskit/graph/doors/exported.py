"""The second door: torch.export runs forward once on shapes, batch size open, and writes down what torch did."""

import logging
import warnings
from typing import Any

import torch
from torch import fx, nn

from compresskit.errors import UnsupportedModelError
from compresskit.graph.doors.lowering import lowered
from compresskit.graph.doors.opaque import opaque_layers


def exported(module: nn.Module, batch: Any) -> fx.GraphModule:
    """What forward of the module, in the mode in which it is, does with a batch of this shape and any size.

    batch: of 2 samples or more (with one, torch takes the batch size for a number); a tuple where there are several
    inputs. Raises UnsupportedModelError with what stopped it.
    """
    any_size = {0: torch.export.Dim.DYNAMIC}
    sizes = tuple(any_size for _ in batch) if isinstance(batch, tuple) else any_size
    logging.getLogger("torch").disabled = True  # its warnings are not the user's
    try:
        with opaque_layers(module) as calls, warnings.catch_warnings(action="ignore"), _plain_attention():
            program = torch.export.export(module, (batch,), dynamic_shapes=(sizes,), strict=False)
        network = lowered(program, module, calls)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{type(module).__name__}: {error}") from error
    except Exception as error:  # whatever forward raises when it is given shapes alone
        raise UnsupportedModelError(f"{type(module).__name__}: torch.export stops: {_said(error)}") from error
    finally:
        logging.getLogger("torch").disabled = False
    return network


class _plain_attention:
    """Inside, transformer layers take the path that training takes, and no fused one for eval mode alone."""

    def __enter__(self) -> None:
        self._before = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)

    def __exit__(self, *_: object) -> None:
        torch.backends.mha.set_fastpath_enabled(self._before)


def _said(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0]
