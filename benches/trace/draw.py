"""A trace of requests of editing users, as JSON lines: its class, prompt, seed, and what the prompt names.

    python benches/trace/draw.py > trace.jsonl

Of 1,000 requests exactly 10 % repeat an earlier one with its seed, 15 % ask for an earlier scene in other words, 55 %
are edits of one attribute, the same words but for those that say it, and 20 % are fresh scenes. Each fresh scene begins
a family; whom a request continues is drawn by Zipf's law (exponent 1) over the families so far, whose ranks are drawn
when they begin, and within the family its latest request with probability 0.7, else any. All but repeats have a seed of
their own. All prompts are of the evidence split (benches/map/draw.py).
"""

import argparse
import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "map"))
import draw as split  # noqa: E402
from draw import steering, world  # noqa: E402

FIRST = 5 * 10**9
SHARES = {"repeat": 0.10, "paraphrase": 0.15, "edit": 0.55, "fresh": 0.20}
LATEST = 0.7


def request(kind, scene, words, caption, seed):
    return {"class": kind, "scene": scene, "words": words, "caption": caption, "seed": seed}


def told(rng, scene, words=None):
    """A caption of the evidence split and the dice that told it, or nothing."""
    words = rng.randrange(2**32) if words is None else words
    caption = world.caption(scene, random.Random(words))
    return (words, caption) if split.split_of(caption[0]) == "evidence" else None


def fresh(rng):
    scene = world.sample_scene(rng)
    found = told(rng, scene)
    return found and request("fresh", scene, *found, rng.randrange(2**53))


def paraphrase(rng, before):
    found = told(rng, before["scene"])
    # The same scene, all that was asked for and nothing else.
    if not found or found[1][0] == before["caption"][0] or steering.names(found[1]) != steering.names(before["caption"]):
        return None
    return request("paraphrase", before["scene"], *found, rng.randrange(2**53))


def edit(rng, before):
    scene, attribute = before["scene"], rng.choice(steering.ONE)
    subject = rng.randrange(len(scene.subjects))
    if attribute == "place" and len(scene.subjects) > 1:
        return None  # the only other place is the other subject's
    new = steering.changed_scene(rng, scene, attribute, subject)
    found = told(rng, new, before["words"])
    if not found:
        return None
    text, named, subjects = found[1]
    is_named = attribute in (named if attribute in steering.SCENE else subjects[subject])
    same = steering.names(found[1]) == steering.names(before["caption"])
    if not (is_named and same) or steering.words_changed(before["caption"][0], text) > 6:
        return None  # nobody would ask for what the prompt does not name, or the dice fell apart
    return request("edit", new, *found, rng.randrange(2**53))


def trace(count, number):
    rng = random.Random(FIRST + number)
    classes = [kind for kind, share in SHARES.items() for _ in range(round(share * count))]
    rng.shuffle(classes)
    first = classes.index("fresh")
    classes[0], classes[first] = classes[first], classes[0]
    families, weights = [], []
    for kind in classes:
        found = None
        while found is None:
            if kind == "fresh":
                found = fresh(rng)
                if found:
                    families.append([found])
                    weights.append(1 / rng.randint(1, round(SHARES["fresh"] * count)))
                continue
            family = rng.choices(families, weights)[0]
            before = family[-1] if rng.random() < LATEST else rng.choice(family)
            found = {**before, "class": "repeat"} if kind == "repeat" else globals()[kind](rng, before)
            if found:
                family.append(found)
        yield found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--trace", type=int, default=0, help="which trace: each number draws another one")
    arguments = parser.parse_args()
    for r in trace(arguments.requests, arguments.trace):
        text, named, subjects = r["caption"]
        line = {"class": r["class"], "prompt": text, "seed": r["seed"], "named": named | {"subjects": subjects}}
        print(json.dumps(line, separators=(",", ":")))
