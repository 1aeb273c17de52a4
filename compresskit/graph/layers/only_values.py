"""Where a layer may compute in numpy, whose calls cost small layers less than torch's."""

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd.forward_ad import unpack_dual
from torch.utils._python_dispatch import is_in_torch_dispatch_mode


def only_values(*tensors: Tensor) -> bool:
    """Whether the values of these tensors are all that is wanted: float32 or float64 in the memory of the CPU.

    What numpy computes, torch does not see. So nothing may want gradients, in either direction, or follow the calls, as
    export, compile, `torch.jit.trace`, `torch.func` and dispatch modes do; autocast chooses another precision.
    """
    followed = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None or is_in_torch_dispatch_mode()
    if followed or torch.is_autocast_enabled("cpu"):
        return False
    return all(_only_values(tensor) and tensor.dtype == tensors[0].dtype for tensor in tensors)


def _only_values(tensor: Tensor) -> bool:
    plain = type(tensor) in (Tensor, nn.Parameter) and not is_functorch_wrapped_tensor(tensor)
    if not plain or tensor.device.type != "cpu" or tensor.dtype not in (torch.float32, torch.float64):
        return False
    if tensor.requires_grad and torch.is_grad_enabled():
        return False
    return unpack_dual(tensor).tangent is None
