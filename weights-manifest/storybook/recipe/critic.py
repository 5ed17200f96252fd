"""Stage 8: the critic that measures realism.

A small CNN that tells drawn pictures from painted ones: its probability of "drawn", over held-out prompts, is the realism
of a plan. It is shown pictures painted with every option of the plan menu's grid; one that had seen no unguided steps
rated those too high. What it makes of a picture depends on its capacity and on how long it learns, so both are fixed:
CHANNELS, ITERATIONS and BATCH are part of the scale, and a critic with others is another scale.

It looks at pictures in their own size, in windows of 33 pixels, and means over the windows: scaling a picture would
smooth the outlines that it judges. The same network runs in Rust (src/quality/critic.rs).

Three steps, after the model is exported:

    python critic.py --work work --tell 1
    pentimento frontier --model ../../storybook.toml --precision bf16 --prompts work/critic/prompts.jsonl --pictures work/critic/painted
    python critic.py --work work

The first writes the prompts of scenes that no other stage knows, the second paints each with the options of one number
of steps, the third draws the same scenes, learns, and prints the realism of each option. Export the model again afterwards.
"""

import json
import math
from multiprocessing import Pool

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

import common
import world
from common import LARGEST, SMALLEST, arguments, autocast, scene_and_rng, to_tensor

CHANNELS, NORM_GROUPS = [3, 16, 32, 64, 64, 64], 8
ITERATIONS, BATCH, RATE = 400, 64, 2e-3
FIRST_SCENE = 500_000_000  # of the critic's own scenes
HELD_OUT = 1 / 6  # of them, the last ones: for the table


class Critic(nn.Module):
    """(B, 3, H, W) in [-1, 1], at least 16 a side, to (B,) logits of having been drawn."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, 2 if i else 1, 1) for i, (a, b) in enumerate(zip(CHANNELS, CHANNELS[1:])))
        self.norms = nn.ModuleList(nn.GroupNorm(NORM_GROUPS, c) for c in CHANNELS[1:])
        self.head = nn.Linear(CHANNELS[-1], 1)

    def forward(self, x):
        for conv, norm in zip(self.convs, self.norms):
            x = F.silu(norm(conv(x)))
        return self.head(x.mean(dim=(2, 3)))[:, 0]


def load_critic(args) -> Critic:
    c = Critic()
    c.load_state_dict(torch.load(args.work / "critic.pt", weights_only=True)["model"])
    return c.eval()


def tell(args, count):
    """Writes the prompts that the engine is to paint: line i tells of scene FIRST_SCENE + i."""
    path = args.work / "critic" / "prompts.jsonl"
    path.parent.mkdir(exist_ok=True)
    captions = (world.caption(*scene_and_rng(FIRST_SCENE + i))[0] for i in range(count))
    path.write_text("".join(json.dumps({"prompt": caption}) + "\n" for caption in captions))
    print(f"{path}: {count} prompts")


class Painted:
    """The pictures of a folder that `pentimento frontier --pictures` wrote: each one's pixels, prompt and option."""

    def __init__(self, folder):
        settings, *lines = (json.loads(line) for line in (folder / "pictures.jsonl").read_text().splitlines())
        self.size = tuple(int(side) for side in settings["size"].split("x"))
        self.pictures = np.memmap(folder / "pictures.rgb", np.uint8, "r").reshape(-1, self.size[1], self.size[0], 3)
        count = min(len(lines), len(self.pictures))
        self.prompts = np.array([line["prompt"] for line in lines[:count]])
        self.options = np.array([line["option"] for line in lines[:count]])


class Pretended:
    """For --smoke: drawn pictures, blurred by two options."""

    def __init__(self, size):
        self.size, self.prompts = size, np.arange(24) // 2
        self.options = np.array(["ddim-3", "ddim-50"] * 12)
        drawn = np.stack([draw((i, size)) for i in range(12)])
        soft = F.avg_pool2d(to_tensor(drawn), 3, 1, 1)
        soft = ((soft + 1) * 127.5).byte().permute(0, 2, 3, 1).numpy()
        self.pictures = np.stack([soft, drawn], 1).reshape(24, *drawn.shape[1:])


def draw(job):
    i, size = job
    return world.draw(*scene_and_rng(FIRST_SCENE + i), *size)


def drawn_pictures(args, painted) -> np.ndarray:
    """The drawn pictures of the painted prompts' scenes, in the same size; prompt i is at place i."""
    jobs = [(i, painted.size) for i in range(int(painted.prompts.max()) + 1)]
    with Pool(args.threads) as pool:
        return np.stack(list(tqdm(pool.imap(draw, jobs, chunksize=32), desc="draw {}x{}".format(*painted.size), total=len(jobs), mininterval=5)))


def train(sets, iterations) -> Critic:
    """Learns from `sets`, (painted, drawn) pairs of a size each, all equally often; half of a batch is drawn."""
    net, rng = Critic().to(memory_format=torch.channels_last), np.random.default_rng(0)
    opt = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.01)
    warmup = 30
    scale = lambda step: min(1, (step + 1) / warmup) * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * step / iterations)))
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, scale)
    want = torch.cat([torch.zeros(BATCH // 2), torch.ones(BATCH // 2)])
    with tqdm(range(iterations), desc="critic", mininterval=5) as bar:
        for _ in bar:
            painted, drawn = sets[rng.integers(len(sets))]
            known = np.flatnonzero(painted.prompts < learned(painted))
            i, j = np.sort(rng.choice(known, BATCH // 2)), rng.integers(learned(painted), size=BATCH // 2)
            x = torch.cat([to_tensor(painted.pictures[i]), to_tensor(drawn[j])])
            if rng.random() < 0.5:
                x = x.flip(-1)
            with autocast():
                logits = net(x)
            loss = F.binary_cross_entropy_with_logits(logits.float(), want)
            opt.zero_grad(set_to_none=True)
            loss.backward()
            opt.step(), schedule.step()
            bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
    return net.eval()


def learned(painted) -> int:
    """How many prompts are learned from; the others are held out."""
    return round((int(painted.prompts.max()) + 1) * (1 - HELD_OUT))


@torch.no_grad()
def realism(net, pictures) -> np.ndarray:
    return np.concatenate([torch.sigmoid(net(to_tensor(pictures[i : i + 64]))).numpy() for i in range(0, len(pictures), 64)])


def print_table(net, painted, drawn):
    """The mean realism of each option's held-out pictures, and of the drawn ones."""
    first = learned(painted)
    held = np.flatnonzero(painted.prompts >= first)
    scores, options = realism(net, painted.pictures[held]), painted.options[held]
    print("\n{}x{}\n\n| option | pictures | realism |\n| :--- | ---: | ---: |".format(*painted.size))
    for option in dict.fromkeys(painted.options):
        own = scores[options == option]
        if len(own):
            print(f"| {option} | {len(own)} | {own.mean():.3f} |")
    print(f"| drawn | {len(drawn) - first} | {realism(net, drawn[first:]).mean():.3f} |")


if __name__ == "__main__":
    args = arguments(
        __doc__, count=(3600, "scenes"), tell=(0, "1 writes the prompts to paint, and ends"),
        painted=("critic/painted", "folders of painted pictures within WORK, with commas between them"),
    )
    if args.tell or args.smoke:
        tell(args, 12 if args.smoke else args.count)
    if not args.tell:
        folders = [] if args.smoke else [Painted(args.work / folder) for folder in args.painted.split(",")]
        folders = folders or [Pretended(SMALLEST), Pretended(LARGEST)]
        sets = [(painted, drawn_pictures(args, painted)) for painted in folders]
        net = train(sets, 3 if args.smoke else ITERATIONS)
        common.write(args.work / "critic.pt", {"model": net.state_dict()})
        for painted, drawn in sets:
            print_table(net, painted, drawn)
