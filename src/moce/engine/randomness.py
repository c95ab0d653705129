"""Randomness is a function: every draw is a hash of (seed, purpose, epoch, image index, place in the draw).

    stream = mix(sha256(purpose) ^ mix(seed + G)),   row = mix(mix(stream + G (epoch + 1)) + G (index + 1)),
    bits = mix(row + G (place + 1)),   uniform = (bits >> 40) 2^-24,   normal = sqrt(2) erfinv(2 uniform + 2^-24 - 1)

`mix` and G are those of splitmix64 (Steele, Lea and Flood 2014). It differs from the textbook generator in
that there is no state to carry: masks, crops, flips and gate noise are looked up, so one process or two,
interrupted or not, in this order or that, see the same numbers. A draw per step rather than per image takes
the step as `epochs` and the place in the global batch as `indices`.

Torch has no unsigned 64-bit integers to compute with: int64 wraps on addition and multiplication just as
uint64 does, and the sign bits that an arithmetic shift drags in are masked away. So `uniform` has the same
bits on every device. `normal` goes through float64, which hides the devices' different last places from all
but about one float32 in 10^8.
"""

import hashlib
import math

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15
ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
LAST_SHIFT = 31
WORD = (1 << 64) - 1


def uniform(
    seed: int, purpose: str, epochs: Int64[Tensor, "draws"] | int, indices: Int64[Tensor, "draws"], count: int
) -> Float32[Tensor, "draws count"]:
    """`count` numbers in [0, 1), multiples of 2^-24, for each (epoch, index); on the device of `indices`.

    `purpose` names what the numbers are for ("crop", "mask"): other purposes are independent of this one.
    """
    return _mantissas(seed, purpose, epochs, indices, count).float().mul_(2.0**-24)


def normal(
    seed: int, purpose: str, epochs: Int64[Tensor, "draws"] | int, indices: Int64[Tensor, "draws"], count: int
) -> Float32[Tensor, "draws count"]:
    """`count` standard normal numbers for each (epoch, index), |x| < 5.5; the inverse distribution of `uniform`."""
    centred = _mantissas(seed, purpose, epochs, indices, count).double().mul_(2.0**-23).add_(2.0**-24 - 1)
    return centred.erfinv_().mul_(math.sqrt(2)).float()


def _mantissas(
    seed: int, purpose: str, epochs: Int64[Tensor, "draws"] | int, indices: Int64[Tensor, "draws"], count: int
) -> Int64[Tensor, "draws count"]:
    """The upper 24 bits of each hash: as many as a float32 holds exactly."""
    name = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little")
    stream = _mix_int(name ^ _mix_int((seed + GOLDEN) & WORD))
    if isinstance(epochs, int):
        epoch_key: Tensor | int = _signed(_mix_int((stream + GOLDEN * (epochs + 1)) & WORD))
    else:
        epoch_key = _mix(epochs.to(indices.device).add(1).mul_(_signed(GOLDEN)).add_(_signed(stream)))
    rows = _mix(indices.add(1).mul_(_signed(GOLDEN)).add_(epoch_key))
    places = torch.arange(1, count + 1, device=indices.device).mul_(_signed(GOLDEN))
    return _shift(_mix(rows[:, None] + places[None, :]), 40)


def _mix(x: Int64[Tensor, "*shape"]) -> Int64[Tensor, "*shape"]:
    """The finaliser of splitmix64; overwrites its argument."""
    for shift, multiplier in ROUNDS:
        x = x.bitwise_xor_(_shift(x, shift)).mul_(_signed(multiplier))
    return x.bitwise_xor_(_shift(x, LAST_SHIFT))


def _shift(x: Int64[Tensor, "*shape"], by: int) -> Int64[Tensor, "*shape"]:
    """A logical right shift: what the arithmetic one drags in from the sign is masked away."""
    return x.bitwise_right_shift(by).bitwise_and_((1 << (64 - by)) - 1)


def _mix_int(x: int) -> int:
    """`_mix` for one Python integer in [0, 2^64)."""
    for shift, multiplier in ROUNDS:
        x = ((x ^ (x >> shift)) * multiplier) & WORD
    return x ^ (x >> LAST_SHIFT)


def _signed(x: int) -> int:
    """The int64 that has the bits of this uint64."""
    return x - (1 << 64) if x >= 1 << 63 else x
