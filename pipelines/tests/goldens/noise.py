"""Prints the pinned values of src/noise.rs from its documentation alone, and PyTorch's where it is installed."""

import hashlib
import math
import struct


def chacha8(key: bytes, n: int) -> bytes:
    rotl = lambda x, k: ((x << k) | (x >> (32 - k))) & 0xFFFFFFFF
    out, counter = b"", 0
    while len(out) < n:
        start = [0x61707865, 0x3320646E, 0x79622D32, 0x6B206574, *struct.unpack("<8I", key), counter & 0xFFFFFFFF, counter >> 32, 0, 0]
        w = start[:]

        def quarter(a, b, c, d):
            for x, y, z, k in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
                w[x] = (w[x] + w[y]) & 0xFFFFFFFF
                w[z] = rotl(w[z] ^ w[x], k)

        for _ in range(4):
            for q in ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
                      (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)):
                quarter(*q)
        out += struct.pack("<16I", *((a + b) & 0xFFFFFFFF for a, b in zip(w, start)))
        counter += 1
    return out[:n]


def noise(purpose: bytes, seed: int, timestep: float, n: int) -> list[float]:
    key = hashlib.sha256(b"pentimento-noise-1" + purpose + struct.pack("<Qd", seed, timestep)).digest()
    pairs = (n + 1) // 2
    words = struct.unpack(f"<{2 * pairs}Q", chacha8(key, 16 * pairs))
    values = []
    for a, b in zip(words[::2], words[1::2]):
        u, v = ((a >> 11) + 1) / 2**53, (b >> 11) / 2**53
        radius = math.sqrt(-2 * math.log(u))
        values += [radius * math.cos(2 * math.pi * v), radius * math.sin(2 * math.pi * v)]
    return values[:n]


if __name__ == "__main__":
    print("pentimento seed 7, initial:", noise(b"initial", 7, math.inf, 4))
    print("pentimento seed 7, step at 981:", noise(b"step", 7, 981.0, 4))
    try:
        import torch
    except ImportError:
        raise SystemExit("torch is not installed: its values are not printed")
    for seed, n in ((0, 16), (42, 1024), (7, 1001), (2**33 + 5, 64)):
        x = torch.randn(n, generator=torch.Generator().manual_seed(seed))
        print(f"torch seed {seed}, {n} values:", {i: x[i].item() for i in (0, 1, 8, 15, n - 2, n - 1)})
