"""AutoAugment of a batch, as torchvision has its policies, each image with a seed of its own."""

from typing import Literal

import torch
from torch import Tensor

Policy = Literal["cifar10", "imagenet", "svhn"]

SEEDS = 1 << 24  # whole numbers that a float32 beside them would keep


def auto_augment(images: Tensor, seeds: Tensor, policy: Policy) -> Tensor:
    """images: (N, C, H, W) uint8. seeds: (N,). Each image as the policy changes it behind its seed, whatever its batch.

    Source: Cubuk et al. 2019. The state of torch's random numbers is left as it was.
    """
    from torchvision.transforms import AutoAugmentPolicy, v2  # a second or more, which others should not wait for

    transform = v2.AutoAugment(AutoAugmentPolicy(policy))
    changed = []
    with torch.random.fork_rng(devices=[]):
        for image, seed in zip(images, seeds.tolist(), strict=True):
            torch.manual_seed(int(seed))
            changed.append(transform(image))
    return torch.stack(changed)
