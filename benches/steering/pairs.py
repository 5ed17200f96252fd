"""Pairs of prompts for the steering bench: a picture's prompt, and the prompt of who resumes its state.

Writes JSON lines: the class of the change; both prompts; what the new one names; and of each changed
attribute what a picture must show to have taken it up. Most pairs are edits (the same words but for those
that say the changed attribute), every fourth is told anew. Scenes and words are drawn from a generator that
no training stage and no evaluation uses; a pair whose scenes a trained one shares is as likely as chance.
"""

import argparse
import difflib
import json
import random
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "weights-manifest/storybook/recipe"))
import world  # noqa: E402

FIRST = 3 * 10**9  # held-out scenes start at 10**9
SCENE = {"time": world.TIMES, "terrain": world.TERRAINS, "weather": world.WEATHERS}
SUBJECT = {"kind": world.KINDS, "colour": world.COLOURS, "size": world.SIZES, "place": world.PLACES}
ONE = [*SCENE, *SUBJECT]


def changed_scene(rng, scene, attribute, subject):
    """The scene with another value of an attribute, of subject number `subject` where it is a subject's."""
    if attribute in SCENE:
        others = [v for v in SCENE[attribute] if v != getattr(scene, attribute)]
        return replace(scene, **{attribute: rng.choice(others)})
    taken = {getattr(s, attribute) for s in scene.subjects} if attribute == "kind" else {getattr(scene.subjects[subject], attribute)}
    value = rng.choice([v for v in SUBJECT[attribute] if v not in taken])
    subjects = list(scene.subjects)
    subjects[subject] = replace(subjects[subject], **{attribute: value})
    return replace(scene, subjects=tuple(subjects))


def names(caption):
    """Which attributes a caption names."""
    _, named, subjects = caption
    return sorted(named), [sorted(s) for s in subjects]


def words_changed(a, b):
    a, b = a.lower().split(), b.lower().split()
    same = sum(m.size for m in difflib.SequenceMatcher(None, a, b, False).get_matching_blocks())
    return max(len(a), len(b)) - same


def taken_up(caption, attribute, subject):
    """What a picture must show to have taken up the change: no more than the attribute and whose it is."""
    _, named, subjects = caption
    if attribute in SCENE:
        return {attribute: named[attribute]}
    s = subjects[subject]
    return {"subjects": [{"kind": s["kind"], attribute: s[attribute]}]}


def pair(rng, kind_of_change):
    """One pair, or nothing where the dice do not fit."""
    scene = world.sample_scene(rng)
    subject = rng.randrange(len(scene.subjects))
    count = {"two": 2, "paraphrase": 0}.get(kind_of_change, 1)
    attributes = rng.sample(ONE, count) if count != 1 else [kind_of_change]
    if "place" in attributes and len(scene.subjects) > 1:
        return None  # the only other place is the other subject's
    new = scene
    for attribute in attributes:
        new = changed_scene(rng, new, attribute, subject)
    words = rng.randrange(2**32)
    retold = count == 0 or rng.random() < 0.25
    before = world.caption(scene, random.Random(words))
    after = world.caption(new, random.Random(rng.randrange(2**32) if retold else words))
    if names(before) != names(after) or before[0] == after[0]:
        return None
    if any(a not in (after[1] if a in SCENE else after[2][subject]) for a in attributes):
        return None  # nobody would ask for what the prompt does not name
    if not retold and words_changed(before[0], after[0]) > 6 * count:
        return None  # the dice fell apart: no edit
    return {
        "class": kind_of_change, "edit": not retold, "source": before[0], "prompt": after[0],
        "named": after[1] | {"subjects": after[2]},
        "changed": {a: taken_up(after, a, subject) for a in attributes},
    }


def pairs(each):
    """`each` pairs of every one-attribute class, half as many paraphrases, twice as many of two attributes; in
    turns, so that any beginning of the list is balanced."""
    rng = random.Random(FIRST)
    turns = [*ONE, "two", *ONE, "two", "two", "two", "paraphrase"]
    for n in range(each * len(turns) // 2):
        found = None
        while found is None:
            found = pair(rng, turns[n % len(turns)])
        yield found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=16, help="pairs of each one-attribute class")
    for line in pairs(parser.parse_args().each):
        print(json.dumps(line))
