"""The closed lists: every module, function, method, attribute and constant that the graph of a checkpoint may name.

None of them reads a file, runs code or looks up a name. What is missing here is refused by name, on saving and on
loading; a new entry is one word.
"""

import builtins
import operator
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from compresskit.graph.layers import windows
from compresskit.graph.layers.expanded import Expanded
from compresskit.graph.layers.grouped import ChannelPermutation, GroupedLinear
from compresskit.graph.layers.grouped_stack import GroupedStack
from compresskit.graph.layers.outputs import Outputs
from compresskit.graph.layers.sample_shape import SampleShape
from compresskit.graph.layers.skew_convolution import SkewConvolution
from compresskit.graph.layers.stochastic_depth import StochasticDepth

_MODULES = """
    Linear Bilinear Identity Embedding MultiheadAttention RNN LSTM GRU
    Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d
    BatchNorm1d BatchNorm2d BatchNorm3d InstanceNorm1d InstanceNorm2d InstanceNorm3d
    GroupNorm LayerNorm RMSNorm LocalResponseNorm
    MaxPool1d MaxPool2d MaxPool3d AvgPool1d AvgPool2d AvgPool3d LPPool1d LPPool2d
    AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d
    ReLU ReLU6 LeakyReLU PReLU RReLU ELU CELU SELU GELU SiLU Mish Hardswish Hardsigmoid Hardtanh Hardshrink Softshrink
    Tanhshrink Sigmoid LogSigmoid Tanh Softplus Softsign Threshold GLU Softmax Softmax2d Softmin LogSoftmax
    Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout
    Flatten Unflatten Upsample PixelShuffle PixelUnshuffle ChannelShuffle
    ZeroPad1d ZeroPad2d ZeroPad3d ConstantPad1d ConstantPad2d ConstantPad3d CircularPad1d CircularPad2d CircularPad3d
    ReflectionPad1d ReflectionPad2d ReflectionPad3d ReplicationPad1d ReplicationPad2d ReplicationPad3d
"""
_OPERATORS = """
    add sub mul truediv floordiv mod pow neg pos abs matmul eq ne lt le gt ge and_ or_ xor inv invert not_ getitem
    iadd isub imul itruediv
"""
_TORCH = """
    abs absolute add addcdiv addcmul addmm all amax amin any arange argmax argmin argsort baddbmm bmm broadcast_to
    cat ceil celu celu_ chunk clamp clamp_max clamp_min clip clone concat conv1d conv2d conv3d conv_transpose1d
    conv_transpose2d conv_transpose3d cos cosh cosine_similarity cumprod cumsum diff div divide dot einsum eq erf
    exp exp2 expm1 eye flatten flip floor floor_divide fmod frac full full_like gather ge greater gt hstack
    index_select isfinite isinf isnan kron layer_norm le less lerp linspace log log10 log1p log2 log_softmax
    logical_and logical_not logical_or logical_xor logsumexp lt masked_fill matmul max maximum mean median min
    minimum mm movedim moveaxis mul multiply mv narrow ne neg negative norm numel ones ones_like outer permute
    pixel_shuffle pixel_unshuffle positive pow prelu prod reciprocal relu relu_ remainder repeat_interleave reshape
    rms_norm roll rot90 round rsqrt select selu selu_ sigmoid sign sin sinh softmax sort split sqrt square squeeze
    stack std std_mean sub subtract sum swapaxes swapdims t take_along_dim tan tanh tensordot tile topk transpose
    tril triu true_divide trunc unbind unflatten unsqueeze var var_mean vstack where zeros zeros_like _assert
"""
_FUNCTIONAL = """
    linear bilinear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d embedding max_pool1d
    max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d lp_pool1d lp_pool2d adaptive_max_pool1d
    adaptive_max_pool2d adaptive_max_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d relu relu_
    relu6 leaky_relu leaky_relu_ prelu elu elu_ celu selu gelu silu mish hardswish hardsigmoid hardtanh hardtanh_
    hardshrink softshrink tanhshrink sigmoid logsigmoid tanh softplus softsign threshold glu softmax softmin
    log_softmax batch_norm layer_norm group_norm instance_norm rms_norm local_response_norm normalize
    cosine_similarity one_hot dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout pad
    interpolate pixel_shuffle pixel_unshuffle channel_shuffle unfold fold scaled_dot_product_attention
"""
_METHODS = """
    abs add add_ all amax amin any argmax argmin bmm bool ceil chunk clamp clamp_ clip clone contiguous copy_ cos cumsum
    detach dim div div_ double eq erf exp expand expand_as flatten flip float floor floor_divide gather ge gt half
    index_select int le log log1p log_softmax logical_and logical_not logical_or logsumexp long lt masked_fill
    masked_fill_ matmul max maximum mean min minimum mm movedim mul mul_ narrow ne neg new_full new_ones new_zeros
    norm numel permute pow prod reciprocal relu relu_ remainder repeat repeat_interleave reshape reshape_as roll
    round rsqrt select sigmoid sign sin size softmax split split_with_sizes sqrt square squeeze std sub sub_ sum
    swapaxes t tanh tile to topk transpose tril triu true_divide type_as unbind unflatten unfold unsqueeze var view
    view_as where zero_
"""
_CONSTANTS = """
    bool uint8 int8 int16 int32 int64 float16 bfloat16 float32 float64
    contiguous_format channels_last channels_last_3d preserve_format
"""


def _named(prefix: str, home: ModuleType, names: str) -> dict[str, Callable[..., Any]]:
    return {f"{prefix}.{name}": getattr(home, name) for name in names.split()}


ATTRIBUTES = frozenset({"shape", "dtype", "device", "ndim", "T", "mT"})
METHODS = frozenset(_METHODS.split())
CONSTANTS: dict[str, Any] = {name: getattr(torch, name) for name in _CONSTANTS.split()}
MODULES: dict[str, type[nn.Module]] = {
    "Module": nn.Module,  # holds other modules and tensors; nothing calls it
    **{name: getattr(nn, name) for name in _MODULES.split()},
    "Outputs": Outputs,
    "SampleShape": SampleShape,
    "StochasticDepth": StochasticDepth,
    "WindowAttention": windows.WindowAttention,
    "Expanded": Expanded,
    "GroupedLinear": GroupedLinear,
    "GroupedStack": GroupedStack,
    "ChannelPermutation": ChannelPermutation,
    "SkewConvolution": SkewConvolution,
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "getattr": builtins.getattr,  # of ATTRIBUTES only
    **_named("operator", operator, _OPERATORS),
    **_named("torch.nn.functional", functional, _FUNCTIONAL),
    **_named("torch", torch, _TORCH),
    "merge_patches": windows.merge_patches,
    "relative_position_bias": windows.relative_position_bias,
}
