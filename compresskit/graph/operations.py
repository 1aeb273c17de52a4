"""What is known of calls and modules when a network is walked through on labels of its channels."""

from torch import fx, nn

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
PACKED = "in_proj_weight"  # of torch's attention, where no layer of its own makes query, key and value
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

# Each output value depends on the values at its own place alone; operands are broadcast.
ELEMENTWISE = frozenset(
    """
    abs absolute add add_ addcdiv addcmul ceil celu celu_ clamp clamp_ clamp_max clamp_min clip clone contiguous cos
    cosh detach div div_ divide dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout elu elu_
    erf exp exp2 expm1 float floor gelu half double hardshrink hardsigmoid hardswish hardtanh hardtanh_ iadd imul
    isub itruediv leaky_relu leaky_relu_ lerp log log10 log1p log2 logsigmoid maximum minimum mish mul mul_ multiply
    neg negative pos positive pow reciprocal relu relu6 relu_ round rsqrt selu selu_ sigmoid sign silu sin sinh
    softplus softshrink softsign sqrt square sub sub_ subtract tan tanh tanhshrink threshold to true_divide truediv
    trunc type_as eq ne lt le gt ge logical_and logical_not logical_or logical_xor masked_fill masked_fill_ where
    expand_as
    """.split()
)
ELEMENTWISE_MODULES = frozenset(
    """
    ReLU ReLU6 LeakyReLU PReLU RReLU ELU CELU SELU GELU SiLU Mish Hardswish Hardsigmoid Hardtanh Hardshrink
    Softshrink Tanhshrink Sigmoid LogSigmoid Tanh Softplus Softsign Threshold Identity Dropout Dropout1d Dropout2d
    Dropout3d AlphaDropout FeatureAlphaDropout StochasticDepth SampleShape
    """.split()
)

# Values move and nothing is computed: these run on the labels themselves.
EXECUTED = frozenset(
    """
    cat concat chunk expand flatten hstack movedim moveaxis permute repeat repeat_interleave reshape split
    split_with_sizes squeeze stack swapaxes swapdims t tile transpose unbind unflatten unsqueeze view
    """.split()
)

# Channels (dimension 1) stay apart, positions behind them change.
SPATIAL = frozenset(
    """
    max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d lp_pool1d lp_pool2d adaptive_max_pool1d
    adaptive_max_pool2d adaptive_max_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d interpolate
    pad boolean_dispatch _max_pool1d _max_pool2d _max_pool3d
    """.split()
)
SPATIAL_MODULES = frozenset(
    """
    MaxPool1d MaxPool2d MaxPool3d AvgPool1d AvgPool2d AvgPool3d LPPool1d LPPool2d AdaptiveMaxPool1d
    AdaptiveMaxPool2d AdaptiveMaxPool3d AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d Upsample ZeroPad1d
    ZeroPad2d ZeroPad3d ConstantPad1d ConstantPad2d ConstantPad3d CircularPad1d CircularPad2d CircularPad3d
    ReflectionPad1d ReflectionPad2d ReflectionPad3d ReplicationPad1d ReplicationPad2d ReplicationPad3d
    """.split()
)

# Of two activations, or of three in attention.
PRODUCTS = frozenset({"matmul", "bmm", "mm", "baddbmm", "einsum", "scaled_dot_product_attention"})
_OF_SHAPE = frozenset({"size", "dim", "numel"})
REDUCING = frozenset({"mean", "sum", "amax", "amin", "norm", "var", "std"})


def calls_of(network: fx.GraphModule, module: str) -> list[fx.Node]:
    """The nodes that call a module, in the order of the graph."""
    return [node for node in network.graph.nodes if node.op == "call_module" and node.target == module]


def called(node: fx.Node) -> str:
    """The name, without its home, of the function or method that a node calls; the path of what else it reads."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def value_users(node: fx.Node) -> set[fx.Node]:
    """The nodes that read the values of `node`, and not its shape or type alone."""
    return {user for user in node.users if called(user) not in _OF_SHAPE and not _is_attribute(user)}


def _is_attribute(node: fx.Node) -> bool:
    return called(node) == "getattr" and node.args[1] in ("shape", "dtype", "device", "ndim")
