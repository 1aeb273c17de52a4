"""What a recipe's `train` and `finetune` sections say about training."""

from typing import Annotated, Literal

from annotated_types import Gt

from compresskit.options import option
from compresskit.training.analyses.gradient_confusion import GradientConfusion
from compresskit.training.distillation import Distill
from compresskit.training.layer_rates import LayerwiseRates
from compresskit.training.optimization.optimizers import SGD, Optimizer
from compresskit.training.optimization.schedules import Cosine, Schedule
from compresskit.training.tasks.losses import Loss

Metric = Literal["accuracy", "accuracy@5", "loss", "mae", "mse", "miou", "recall", "precision", "map", "map@voc07"]


@option
class Training:
    """Training by stochastic gradients, from the first epoch to the last."""

    epochs: Annotated[int, Gt(0)] = 10  # passes over the training images
    batch_size: Annotated[int, Gt(0)] = 128  # of all processes together
    accumulate: Annotated[int, Gt(0)] = 1  # parts that a batch goes through the net in, to need less memory
    optimizer: Optimizer = SGD()  # and its learning rate
    schedule: Schedule = Cosine()  # of the learning rate
    layerwise_rates: LayerwiseRates | None = None  # by the spectra of the layers; {} takes its defaults
    loss: Loss | None = None  # default: cross-entropy for classes, mse for numbers, yolo for boxes
    distill: Distill | None = None  # learn from a teacher, too
    decay_bias_and_norm: bool = True  # false: weight decay spares parameters of one dimension
    clip_norm: Annotated[float, Gt(0)] | None = None  # largest 2-norm of the whole gradient; a larger one is scaled
    precision: Literal["float32", "bfloat16", "float16"] = "float32"  # of forward passes; float16 needs CUDA
    compile: bool = False  # torch.compile: slow first step, faster afterwards
    monitor: Metric | None = None  # picks the best epoch; by default the main metric of the task
    gradient_confusion: GradientConfusion | None = None  # measured at the end of each epoch; {} takes its defaults
    keep: Literal["last", "all"] = "last"  # all: the weights after every epoch, in the folder `weights` of the run
    tensorboard: bool = False  # write the metrics for TensorBoard, too

    def __post_init__(self) -> None:
        if self.schedule.warmup >= self.epochs:
            raise ValueError(
                f"schedule.warmup: {self.schedule.warmup:g} epochs do not fit before the end of {self.epochs}; "
                "warm up for less, or train for more epochs"
            )

    @property
    def kept_epochs(self) -> int:
        """Epochs whose weights are kept on disk, beside the last and the best."""
        return self.epochs if self.keep == "all" else 0
