"""How far a student is from its teacher: the three terms that knowledge distillation adds to a loss."""

import torch
from torch import Tensor
from torch.nn import functional

EPS = 1e-7  # added to probabilities under a logarithm (as the authors of PKT do)


def soft_targets(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), the mean over samples and positions.

    student, teacher: scores (N, classes, ...) before softmax. temperature: T > 0. The factor keeps the gradient's size
    as T grows. Source: Hinton, Vinyals and Dean 2015, section 2.1.
    """
    log_p, log_q = (functional.log_softmax(scores / temperature, 1) for scores in (teacher, student))
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(1).mean()


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the mean square of the difference of two maps of one shape.

    Source: Romero et al. 2015, eq. 3, who sum over the values of a map where we take the mean.
    """
    return 0.5 * functional.mse_loss(student, teacher)


def probabilistic_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """KL between the similarities of the samples of a batch in two feature spaces, the mean over samples:

    sum over j != i of p_ij log(p_ij / q_ij), with p_ij = k_ij / sum over l != i of k_il and
    k_ij = (1 + cos(x_i, x_j)) / 2 of the teacher's features, and q likewise of the student's.

    student: (N, ...), teacher: (N, ...) features of any shapes. Zero where there are fewer than two samples.
    Source: Passalis and Tefas 2018, eq. 4 to 7; they sum over samples where we take the mean.
    """
    p, q = _similarities(teacher), _similarities(student)
    return (p * torch.log((p + EPS) / (q + EPS))).sum(1).mean()


def _similarities(features: Tensor) -> Tensor:
    """(N, N) conditional probabilities; the diagonal is 0."""
    directions = functional.normalize(features.flatten(1), dim=1)
    kernel = (1 + directions @ directions.T) / 2
    kernel = kernel - torch.diag(kernel.diagonal())
    return kernel / kernel.sum(1, keepdim=True).clamp_min(EPS)
