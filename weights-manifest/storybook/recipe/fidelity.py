"""Fidelity: the share of the attributes a prompt names that the classifier finds in the picture."""

from collections import Counter
from itertools import permutations

import world

SCENE = [("time", world.TIMES), ("terrain", world.TERRAINS), ("weather", world.WEATHERS)]


def subjects_found(row) -> list[dict]:
    """The subjects in one row of classifier predictions (laid out as `world.labels`)."""
    found = []
    for i, place in enumerate(world.PLACES):
        kind, colour, size = row[3 + 3 * i : 6 + 3 * i]
        if kind > 0:
            found.append({"kind": world.KINDS[kind - 1], "colour": world.COLOURS[colour], "size": world.SIZES[size], "place": place})
    return found


def score(row, named: dict, subjects: list[dict]) -> Counter:
    """Counts `(attribute, found)` over what the caption named. Each named subject is held against a found
    one of its kind, so that most attributes agree; without one of its kind it has none of its attributes.
    What a picture shows beyond the caption costs nothing."""
    counts = Counter()
    for i, (key, values) in enumerate(SCENE):
        if key in named:
            counts[key, values[row[i]] == named[key]] += 1
    found = subjects_found(row) + [{}] * len(subjects)

    def agree(want, got):
        return {k: got.get("kind") == want["kind"] and got.get(k) == v for k, v in want.items()}

    hits = lambda want, got: sum(agree(want, got).values())
    best = max(permutations(found, len(subjects)), key=lambda p: sum(map(hits, subjects, p)))
    for want, got in zip(subjects, best):
        for key, found_it in agree(want, got).items():
            counts[key, found_it] += 1
    return counts


def table(counts: Counter) -> dict[str, float]:
    """Share found, by attribute and over all."""
    keys = ["time", "terrain", "weather", "kind", "colour", "size", "place"]
    share = lambda ks: sum(counts[k, True] for k in ks) / max(1, sum(counts[k, f] for k in ks for f in (True, False)))
    return {"overall": share(keys)} | {k: share([k]) for k in keys}
