"""Checks the world without training anything: needs numpy and Pillow only."""

import random

import numpy as np

import world


def check(count=300):
    """Drawing and telling are functions of the seed, every attribute occurs, captions name what is there."""
    seen = set()
    for seed in range(count):
        width, height = world.PICTURE_SIZES[seed % len(world.PICTURE_SIZES)]

        def make():
            rng = random.Random(seed)
            scene = world.sample_scene(rng)
            return scene, world.draw(scene, rng, width, height), world.caption(scene, rng)

        scene, picture, (text, named, subjects) = make()
        again = make()
        assert scene == again[0] and (picture == again[1]).all() and text == again[2][0], "not a function of the seed"
        assert picture.shape == (height, width, 3) and picture.dtype == np.uint8 and picture.std() > 10
        assert text.strip() and len(text) < 300
        for key, value in named.items():
            assert getattr(scene, key) == value and any(w in text.lower() for w in world.SAY[value]), (text, key)
        for told, subject in zip(subjects, scene.subjects, strict=True):
            assert all(getattr(subject, k) == v for k, v in told.items()), text
            assert all(any(w in text.lower() for w in world.SAY.get(v, [v])) for v in told.values()), text
        seen |= {scene.time, scene.terrain, scene.weather, *(v for s in scene.subjects for v in vars(s).values())}
    everything = {*world.TIMES, *world.TERRAINS, *world.WEATHERS, *world.KINDS, *world.COLOURS, *world.SIZES, *world.PLACES}
    assert seen == everything, everything - seen
    print(f"{count} scenes drawn and told, every attribute among them")


if __name__ == "__main__":
    check()
