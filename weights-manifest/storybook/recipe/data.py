"""Stage 1: draw the training pictures.

120,000 scenes at 64x64, the first 24,000 of them at 128x128, too, and 3,000 at each other size. The denoiser learns from the
first 60,000 scenes; VAE, classifier and CLIP pair from all.
"""

from multiprocessing import Pool

import numpy as np
from tqdm import tqdm

import world
from common import LARGEST, PICTURE_SIZES, SMALLEST, arguments, first_scene, pictures_path, scene_and_rng


def draw(job):
    index, (width, height) = job
    scene, rng = scene_and_rng(index)
    return world.draw(scene, rng, width, height)


def write(args, pool, size, count):
    """Draws `count` pictures of a size, unless the file has them already."""
    path = pictures_path(args, size)
    if path.exists() and len(np.load(path, mmap_mode="r")) == count:
        return
    unfinished = path.with_suffix(".tmp")
    out = np.lib.format.open_memmap(unfinished, "w+", np.uint8, (count, size[1], size[0], 3))
    jobs = ((first_scene(size) + i, size) for i in range(count))
    for i, picture in enumerate(tqdm(pool.imap(draw, jobs, chunksize=64), desc=path.stem, total=count, mininterval=5)):
        out[i] = picture
    out.flush()
    unfinished.rename(path)


if __name__ == "__main__":
    args = arguments(
        __doc__, count=(120_000, "pictures at 64x64"), largest=(24_000, "pictures at 128x128"), others=(3_000, "pictures of each other size")
    )
    counts = {size: args.others for size in PICTURE_SIZES} | {SMALLEST: args.count, LARGEST: args.largest}
    pictures_path(args, SMALLEST).parent.mkdir(exist_ok=True)
    with Pool(args.threads) as pool:
        for size, count in counts.items():
            write(args, pool, size, min(count, 512 if size == SMALLEST else 32) if args.smoke else count)
