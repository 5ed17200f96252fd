"""Pairs of prompts for `pentimento calibrate`: a picture's prompt, and the prompt of who resumes its state.

    python benches/map/draw.py --split calibration --each 100 > weights-manifest/storybook/model/calibration/pairs.jsonl
    python benches/map/draw.py --split evidence --each 50 > evidence.jsonl

Writes JSON lines: what changed (`class`), both prompts, and what the new one names. Classes: one attribute changed,
by which it is; `count` (a subject more or less); `two` attributes; `several` (three or four, told anew); `unrelated`
(two scenes); `paraphrase` (one scene told anew). Most one- and two-attribute pairs are edits, the same words but for
those that say the changed attribute; every fourth is told anew.

Which split a prompt belongs to is a hash of it: the first byte of its sha256 is even for calibration and odd for
evidence, so no prompt is in both. Scenes are drawn from generators that no training stage and no evaluation uses.
"""

import argparse
import hashlib
import json
import random
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "steering"))
import pairs as steering  # noqa: E402
import world  # noqa: E402  (steering's pairs.py knows where it lies)

SPLITS = ["calibration", "evidence"]
FIRST = 4 * 10**9
CLASSES = [*steering.ONE, "count", "two", "several", "unrelated", "paraphrase"]


def split_of(prompt: str) -> str:
    return SPLITS[hashlib.sha256(prompt.encode()).digest()[0] % 2]


def told(rng, scene):
    return world.caption(scene, random.Random(rng.randrange(2**32)))


def counted(rng):
    """A scene of two subjects, and the scene without one of them; either way round."""
    scene = world.sample_scene(rng)
    if len(scene.subjects) < 2:
        return None
    both = [scene, replace(scene, subjects=(rng.choice(scene.subjects),))]
    rng.shuffle(both)
    return both


def several(rng):
    """A scene and one with three or four attributes changed."""
    scene = world.sample_scene(rng)
    new, subject = scene, rng.randrange(len(scene.subjects))
    for attribute in rng.sample([a for a in steering.ONE if a != "place"], rng.choice([3, 4])):
        new = steering.changed_scene(rng, new, attribute, subject)
    return scene, new


def drawn(rng, kind):
    """One pair, or nothing where the dice do not fit."""
    scenes = {"count": counted, "several": several, "unrelated": lambda r: (world.sample_scene(r), world.sample_scene(r))}
    if kind not in scenes:
        pair = steering.pair(rng, kind)
        return pair and {"class": kind, "source": pair["source"], "prompt": pair["prompt"], "named": pair["named"]}
    both = scenes[kind](rng)
    if both is None:
        return None
    before, after = (told(rng, scene) for scene in both)
    if before[0] == after[0]:
        return None
    return {"class": kind, "source": before[0], "prompt": after[0], "named": after[1] | {"subjects": after[2]}}


def pairs(split, each):
    """`each` pairs of every class, in turns, so that any beginning of the list is balanced."""
    rng = random.Random(FIRST + SPLITS.index(split))
    for n in range(each * len(CLASSES)):
        found = None
        while found is None or {split_of(found["source"]), split_of(found["prompt"])} != {split}:
            found = drawn(rng, CLASSES[n % len(CLASSES)])
        yield found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=SPLITS, default="calibration")
    parser.add_argument("--each", type=int, default=100, help="pairs of each class")
    args = parser.parse_args()
    for line in pairs(args.split, args.each):
        print(json.dumps(line, separators=(",", ":")))
