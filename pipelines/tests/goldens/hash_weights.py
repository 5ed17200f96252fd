"""Weights and inputs as pure functions of a name, so that none need be stored.

The twin of `tests/integration/support/hash_weights.rs`: element `i` of the tensor called `name` is
`splitmix64(fnv1a64(name) + i * 0x9E3779B97F4A7C15)`, its top 24 bits mapped to [-1, 1), scaled in f64
and rounded to f32 once. Both languages get the same bits.
"""

import hashlib
import math

import numpy as np
import torch

GOLDEN_GAMMA = 0x9E3779B97F4A7C15


def fnv1a64(name: str) -> int:
    """FNV-1a, 64 bits, of the name's UTF-8."""
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = ((h ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return h


def uniform(name: str, count: int) -> np.ndarray:
    """`count` float64 values in [-1, 1), each a multiple of 2^-23."""
    with np.errstate(over="ignore"):
        z = np.uint64(fnv1a64(name)) + np.arange(count, dtype=np.uint64) * np.uint64(GOLDEN_GAMMA)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(40)).astype(np.float64) / 2.0**23 - 1.0


def weight(component: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A weight whose scale keeps activations near one: norms about 1, biases small, unit gain elsewhere."""
    u = uniform(f"{component}/{name}", math.prod(shape))
    if name.endswith("bias"):
        values = u * 0.1
    elif len(shape) == 1:
        values = 1.0 + u * 0.1
    elif name.endswith("_embedding.weight"):
        values = u * 0.5
    else:
        values = u * math.sqrt(3.0 / math.prod(shape[1:]))
    return values.astype(np.float32).reshape(shape)


def fill(module: torch.nn.Module, component: str) -> torch.nn.Module:
    """Gives every parameter of `module` its hash weights."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.from_numpy(weight(component, name, tuple(parameter.shape))))
    return module.eval().requires_grad_(False)


def names_digest(module: torch.nn.Module) -> str:
    """sha256 over the sorted parameter names and shapes: the Rust side must read exactly these."""
    lines = sorted(f"{n} {'x'.join(map(str, p.shape))}\n" for n, p in module.named_parameters())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def normal_like(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """An input of unit variance (uniform on [-sqrt 3, sqrt 3))."""
    values = uniform(name, math.prod(shape)) * math.sqrt(3.0)
    return torch.from_numpy(values.astype(np.float32).reshape(shape))
