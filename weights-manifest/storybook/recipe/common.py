"""What every stage shares: its arguments, the pictures, checkpoints, EMA and the training loop."""

import argparse
import copy
import math
import os
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import world
from world import PICTURE_SIZES


SMALLEST, LARGEST = PICTURE_SIZES[0], PICTURE_SIZES[-1]
# Parts of the batches that learn all sizes: the default size has the most, since most pictures have it; 64x64 has nearly six times
# as many as each other size, so that the size of the first run is not forgotten. The others share the rest equally.
SHARES = {SMALLEST: 0.12, LARGEST: 0.40}


def arguments(doc: str, **extra) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--work", type=Path, default=Path("work"), help="where pictures, checkpoints and results go")
    p.add_argument("--smoke", action="store_true", help="seconds instead of hours, in WORK/smoke, to see that the stage runs")
    p.add_argument("--threads", type=int, default=os.cpu_count())
    for name, (value, text) in extra.items():
        p.add_argument("--" + name.replace("_", "-"), type=type(value), default=value, help=text)
    args = p.parse_args()
    if args.smoke:
        args.work = args.work / "smoke"  # never among the real files
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    return args


def scene_and_rng(index: int) -> tuple[world.Scene, random.Random]:
    """Scene number `index` of the training world, and the generator that goes on to draw it."""
    rng = random.Random(index)
    return world.sample_scene(rng), rng


def pictures_path(args, size) -> Path:
    return args.work / "pictures" / "{}x{}.npy".format(*size)


def first_scene(size) -> int:
    """The scene that a size's first picture shows. The smallest and the largest size begin with scene 0, the others each
    1,000 scenes later, all among those that the denoiser also learns at 64x64."""
    return 0 if size in (SMALLEST, LARGEST) else 24_000 + 1_000 * PICTURE_SIZES.index(size)


def load_pictures(args, size=SMALLEST) -> np.ndarray:
    """uint8 (N, H, W, 3), written by data.py; picture i shows scene `first_scene(size) + i`."""
    return np.load(pictures_path(args, size), mmap_mode="r")


def choose_size(rng):
    """The size of a batch's pictures, drawn by SHARES."""
    rest = (1 - sum(SHARES.values())) / (len(PICTURE_SIZES) - len(SHARES))
    return PICTURE_SIZES[rng.choice(len(PICTURE_SIZES), p=[SHARES.get(size, rest) for size in PICTURE_SIZES])]


def to_smallest(x: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) of any size scaled to the 64x64 that the classifier and the CLIP pair look at."""
    return F.interpolate(x, size=(world.SIZE, world.SIZE), mode="bilinear", antialias=True)


def to_tensor(pictures: np.ndarray) -> torch.Tensor:
    """uint8 (B, H, W, 3) to float (B, 3, H, W) in [-1, 1], channels last."""
    x = torch.from_numpy(np.ascontiguousarray(pictures)).float() / 127.5 - 1
    return x.permute(0, 3, 1, 2)


def autocast():
    return torch.autocast("cpu", torch.bfloat16)


class Ema:
    """Exponential moving average of the weights, with a warm-up of the decay."""

    def __init__(self, model, decay):
        self.model, self.decay = copy.deepcopy(model).requires_grad_(False), decay

    def update(self, model, step):
        d = min(self.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.model.parameters()), [p.detach() for p in model.parameters()], 1 - d)


def train(args, name, model, loss_fn, lr, minutes, *, decay=0.999, warmup=200, weight_decay=0.01):
    """Runs `loss_fn(rng) -> loss` for a wall-clock budget, over which the learning rate follows a cosine,
    and returns the EMA model. Resumes from `<name>.pt`, or begins with the weights in it where restore.py wrote it; saves
    every two minutes."""
    path = args.work / f"{name}.pt"
    opt = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay)
    ema, start, spent = Ema(model, decay), 0, 0.0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        ema.model.load_state_dict(saved["ema"])
        model.load_state_dict(saved.get("model", saved["ema"]))
        if "opt" in saved:
            opt.load_state_dict(saved["opt"])
            start, spent = saved["step"], saved["spent"]
    rng = np.random.default_rng(1000 + start)
    torch.manual_seed(1000 + start)
    budget, step = 60 * minutes, start
    last_save = last = time.time()
    with tqdm(total=round(budget), initial=round(spent), desc=name, unit="s", mininterval=5) as bar:
        shown = None
        while (step < start + 3) if args.smoke else (spent < budget):
            done = min(1, spent / budget)
            scale = min(1, (step - start + 1) / warmup) * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * done)))
            for g in opt.param_groups:
                g["lr"] = lr * scale
            loss = loss_fn(rng)
            opt.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
            ema.update(model, step)
            step += 1
            shown = loss.item() if shown is None else 0.98 * shown + 0.02 * loss.item()
            now = time.time()
            spent, last = spent + now - last, now
            bar.set_postfix(step=step, loss=f"{shown:.4f}", refresh=False)
            bar.update(round(spent) - bar.n)
            if now - last_save > 120:
                _save(path, model, ema, opt, step, spent)
                last_save = last = time.time()
    if step > start:
        _save(path, model, ema, opt, step, spent)
    return ema.model.eval()


def _save(path, model, ema, opt, step, spent):
    write(path, {"model": model.state_dict(), "ema": ema.model.state_dict(), "opt": opt.state_dict(), "step": step, "spent": spent})


def write(path: Path, value) -> None:
    """`torch.save` that leaves the old file or the whole new one."""
    torch.save(value, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)
