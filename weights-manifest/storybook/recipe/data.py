"""Stage 1: draw the training pictures."""

import numpy as np
from tqdm import tqdm

import world
from common import arguments, scene_and_rng

args = arguments(__doc__, count=(120_000, "pictures to draw"))
count = 512 if args.smoke else args.count
path = args.work / "pictures.npy"
if not path.exists() or len(np.load(path, mmap_mode="r")) != count:
    out = np.lib.format.open_memmap(path.with_suffix(".tmp"), "w+", np.uint8, (count, world.SIZE, world.SIZE, 3))
    for i in tqdm(range(count), desc="data", mininterval=5):
        scene, rng = scene_and_rng(i)
        out[i] = world.draw(scene, rng)
    out.flush()
    path.with_suffix(".tmp").rename(path)
