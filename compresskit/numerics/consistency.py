"""How differently a network judges several views of the same samples."""

import math

import torch
from torch import Tensor
from torch.nn import functional


def divergence(scores: Tensor) -> Tensor:
    """Jensen-Shannon divergence of the views' class probabilities, the mean over samples and positions:

    (1 / V) sum_v KL(p_v || (1 / V) sum_u p_u), with natural logarithms; from 0 to ln V.
    scores: (V, N, classes, ...) before softmax. Source: Hendrycks et al. 2020 (AugMix), equation 1.
    """
    logs = functional.log_softmax(scores, 2)
    mixture = torch.logsumexp(logs, 0) - math.log(len(logs))
    return (logs.exp() * (logs - mixture)).sum(2).mean()
