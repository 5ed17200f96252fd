"""Stage 3: the attribute classifier that measures fidelity.

A small CNN with one group of logits per label of `world.labels`: time, terrain, weather, and for
each place what stands there, its colour and its size. It looks at 64x64: pictures of other sizes are scaled to that, and do
not keep their aspect. Three of five batches are of any size, the others of 64x64. Blur, noise and shifts in training keep it honest on decoded pictures.
The same network runs in Rust (src/quality/).
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import common
import world
from common import LARGEST, PICTURE_SIZES, SMALLEST, arguments, autocast, first_scene, load_pictures, scene_and_rng, to_smallest, to_tensor

_PER_PLACE = [1 + len(world.KINDS), len(world.COLOURS), len(world.SIZES)]
GROUPS = [len(world.TIMES), len(world.TERRAINS), len(world.WEATHERS)] + _PER_PLACE * len(world.PLACES)
CHANNELS = [3, 32, 64, 96, 128]


class Classifier(nn.Module):
    """(B, 3, 64, 64) in [-1, 1] to (B, sum(GROUPS)) logits."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, 2 if i else 1, 1) for i, (a, b) in enumerate(zip(CHANNELS, CHANNELS[1:])))
        self.norms = nn.ModuleList(nn.GroupNorm(8, c) for c in CHANNELS[1:])
        self.mix = nn.Conv2d(128, 48, 3, 1, 1)
        self.hidden = nn.Linear(48 * 64, 256)
        self.head = nn.Linear(256, sum(GROUPS))

    def forward(self, x):
        for conv, norm in zip(self.convs, self.norms):
            x = F.silu(norm(conv(x)))
        x = F.silu(self.mix(x)).flatten(1)
        return self.head(F.silu(self.hidden(x)))


def load_classifier(args) -> Classifier:
    c = Classifier()
    c.load_state_dict(torch.load(args.work / "classifier.pt", weights_only=True)["ema"])
    return c.eval()


def predict(classifier, x) -> np.ndarray:
    """Labels laid out as `world.labels`, (B, 12); kind 0 means that nothing stands at that place."""
    with torch.no_grad():
        return torch.stack([g.argmax(1) for g in classifier(x).split(GROUPS, 1)], 1).numpy()


def augment(x, rng):
    if rng.random() < 0.5:
        s = rng.choice([2, 4])
        soft = F.interpolate(F.avg_pool2d(x, int(s)), size=64, mode="bilinear")
        x = torch.lerp(x, soft, float(rng.uniform(0, 0.8)))
    dx, dy = rng.integers(-2, 3, size=2)
    x = torch.roll(F.pad(x, (2, 2, 2, 2), mode="replicate"), (int(dy), int(dx)), (2, 3))[..., 2:-2, 2:-2]
    return x * float(rng.uniform(0.9, 1.1)) + torch.randn_like(x) * float(rng.uniform(0, 0.12))


def labels_of(size, count) -> torch.Tensor:
    """(count, 12): what the size's pictures show."""
    return torch.from_numpy(np.stack([world.labels(scene_and_rng(first_scene(size) + i)[0]) for i in range(count)]))


if __name__ == "__main__":
    args = arguments(__doc__, minutes=(20.0, "wall-clock budget"), rate=(2e-3, "peak learning rate"))
    pictures = {size: load_pictures(args, size) for size in PICTURE_SIZES}
    labels = {size: labels_of(size, len(some)) for size, some in pictures.items()}
    # No batch has these, the first pictures of each size; their scenes may be learned at another size.
    held = {size: min(2000, len(some) // 4) for size, some in pictures.items()}
    net = Classifier()
    forward = net if args.smoke else torch.compile(net)

    def loss_fn(rng):
        size = SMALLEST if rng.random() < 0.4 else PICTURE_SIZES[rng.integers(len(PICTURE_SIZES))]
        i = np.sort(rng.integers(held[size], len(pictures[size]), size=64))
        x, y = augment(to_smallest(to_tensor(pictures[size][i])), rng), labels[size][i]
        with autocast():
            logits = forward(x)
        parts = logits.float().split(GROUPS, 1)
        return sum(F.cross_entropy(p, y[:, k], ignore_index=-1) for k, p in enumerate(parts)) / len(parts)

    net = common.train(args, "classifier", net, loss_fn, args.rate, args.minutes)
    for size in (SMALLEST, LARGEST, (128, 64), (64, 128), (96, 128)):
        got = predict(net, to_smallest(to_tensor(pictures[size][: held[size]])))
        want = labels[size][: held[size]].numpy()
        shares = []
        for name, cols in (("time", [0]), ("terrain", [1]), ("weather", [2]), ("kind", [3, 6, 9]), ("colour", [4, 7, 10]), ("size", [5, 8, 11])):
            known = want[:, cols] >= 0
            shares.append(f"{name} {(got[:, cols] == want[:, cols])[known].mean():.4f}")
        print("{}x{}: ".format(*size) + ", ".join(shares))
