"""What bounds sums of moments on each kind of device: sizes of pieces, and costs by which algorithms are chosen."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Machine:
    """Sizes that fit a device, and what things cost there in multiply-adds of a large float64 product.

    budget: bytes of temporaries that are always allowed, however small the sums are. tile: rows of a panel of the
    second moment; only panels on and above the diagonal are computed. cache: bytes of spectra multiplied at a time.
    move: cost of moving one float64 through memory. small: of one multiply-add in the products of `add_shifted`, whose
    sides are short. call: of the calls for one piece of its ring.
    """

    budget: int
    tile: int
    cache: int
    move: float
    small: float
    call: float


# One AVX-512 core: 25e9 multiply-adds a second. Spectra stay in its cache until they are used.
CPU = Machine(budget=2**25, tile=256, cache=2**23, move=24, small=2.5, call=1e7)
# An H200: 30e12 a second, 4 ps for a move, 0.17 ms for a piece of the ring. Short pieces leave it idle.
GPU = Machine(budget=2**29, tile=1024, cache=2**28, move=120, small=4.7, call=5e9)
# Cards whose float64 units are few, at a 40th of that; by their data sheets, not measured.
GPU_OF_FEW_UNITS = Machine(budget=2**29, tile=1024, cache=2**28, move=3, small=1.2, call=1.2e8)
MANY_UNITS = {(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)}  # compute capabilities of P100, V100, A100, H100, B200


def machine_of(device: torch.device) -> Machine:
    """That of a device's kind."""
    if device.type != "cuda":
        return CPU
    return GPU if torch.cuda.get_device_capability(device) in MANY_UNITS else GPU_OF_FEW_UNITS
