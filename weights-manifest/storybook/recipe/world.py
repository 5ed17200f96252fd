"""The storybook world: scenes, the program that draws them, and their captions.

A scene is a handful of discrete attributes (`Scene`, `Subject`) plus free jitter. `draw` paints it
at 4x and averages down to 64x64, `caption` tells it in one of many ways and says which attributes
it named. Everything is a pure function of a `random.Random`.
"""

import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIZE = 64
_SS = 4  # supersampling per axis
_W = SIZE * _SS

TIMES = ["day", "sunset", "night", "dawn"]
TERRAINS = ["meadow", "desert", "snow", "sea", "mountains", "forest"]
WEATHERS = ["clear", "cloudy", "rain", "fog", "rainbow"]
KINDS = ["house", "tree", "boat", "castle", "tent", "windmill", "lighthouse", "balloon"]
COLOURS = ["red", "yellow", "green", "blue", "purple", "white", "black"]
SIZES = ["small", "large"]
PLACES = ["left", "center", "right"]

RGB = {
    "red": (226, 32, 32), "yellow": (255, 220, 20), "green": (30, 170, 50), "blue": (30, 80, 235),
    "purple": (160, 50, 200), "white": (248, 248, 248), "black": (28, 26, 30),
}
_SKY = {  # top, horizon
    "day": ((70, 160, 245), (190, 228, 255)), "sunset": ((200, 60, 50), (255, 178, 70)),
    "night": ((8, 10, 44), (40, 50, 110)), "dawn": ((150, 130, 215), (255, 190, 205)),
}
_GROUND = {  # far, near
    "meadow": ((130, 200, 80), (90, 170, 60)), "desert": ((240, 205, 130), (222, 175, 90)),
    "snow": ((240, 246, 252), (215, 228, 242)), "sea": ((40, 125, 175), (20, 85, 145)),
    "mountains": ((140, 140, 130), (112, 110, 104)), "forest": ((60, 110, 60), (45, 90, 45)),
}
_LIGHT = {"day": 1.0, "sunset": 0.88, "night": 0.5, "dawn": 0.92}


@dataclass(frozen=True)
class Subject:
    kind: str
    colour: str
    size: str
    place: str


@dataclass(frozen=True)
class Scene:
    time: str
    terrain: str
    weather: str
    subjects: tuple[Subject, ...]


def sample_scene(rng: random.Random) -> Scene:
    places = [rng.choice(PLACES)] if rng.random() < 0.6 else ["left", "right"]
    kinds = rng.sample(KINDS, len(places))
    subjects = [Subject(k, rng.choice(COLOURS), rng.choice(SIZES), p) for k, p in zip(kinds, places)]
    rng.shuffle(subjects)
    return Scene(rng.choice(TIMES), rng.choice(TERRAINS), rng.choice(WEATHERS), tuple(subjects))


# ---- drawing -------------------------------------------------------------------------------

def _mix(a, b, t):
    return tuple(int(round(x + (y - x) * t)) for x, y in zip(a, b))


def _shade(c, f):
    return tuple(int(max(0, min(255, x * f))) for x in c)


def _gradient(top, bottom, h):
    t = np.linspace(0, 1, h, dtype=np.float32)[:, None]
    return (np.float32(top) * (1 - t) + np.float32(bottom) * t)[:, None, :]


class _Brush:
    """Draws in a subject's own frame: x and y in units of its height, y up from its foot."""

    def __init__(self, d, cx, foot, h, line):
        self.d, self.cx, self.foot, self.h, self.line = d, cx, foot, h, line

    def _p(self, x, y):
        return (self.cx + x * self.h, self.foot - y * self.h)

    def poly(self, pts, fill):
        pts = [self._p(x, y) for x, y in pts]
        self.d.polygon(pts, fill=fill)
        self.d.line(pts + pts[:2], fill=self.line, width=3, joint="curve")

    def rect(self, x0, y0, x1, y1, fill):
        self.poly([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], fill)

    def oval(self, x, y, rx, ry, fill):
        (a, b), (c, d) = self._p(x - rx, y + ry), self._p(x + rx, y - ry)
        self.d.ellipse([a, b, c, d], fill=fill, outline=self.line, width=3)


def _house(b, c, dark, lit):
    b.rect(-0.46, 0, 0.46, 0.56, c)
    b.poly([(-0.58, 0.54), (0.58, 0.54), (0, 1.0)], dark)
    b.rect(-0.1, 0, 0.1, 0.3, (110, 70, 40))
    for x in (-0.31, 0.31):
        b.rect(x - 0.08, 0.26, x + 0.08, 0.42, lit)


def _tree(b, c, dark, lit):
    b.rect(-0.08, 0, 0.08, 0.45, (120, 75, 40))
    for x, y, r in ((-0.2, 0.56, 0.24), (0.2, 0.56, 0.24), (0, 0.74, 0.27)):
        b.oval(x, y, r, r, c)
    b.d.ellipse([*b._p(-0.2, 0.8), *b._p(0.2, 0.5)], fill=c)


def _boat(b, c, dark, lit):
    b.poly([(-0.55, 0.26), (0.55, 0.26), (0.36, 0), (-0.36, 0)], dark)
    b.rect(-0.02, 0.26, 0.02, 1.0, (120, 75, 40))
    b.poly([(0.06, 0.32), (0.5, 0.32), (0.06, 0.98)], c)
    b.poly([(-0.06, 0.32), (-0.42, 0.32), (-0.06, 0.86)], c)


def _castle(b, c, dark, lit):
    b.rect(-0.34, 0, 0.34, 0.52, c)
    for x in (-0.22, 0, 0.22):
        b.rect(x - 0.06, 0.52, x + 0.06, 0.62, c)
    for x in (-0.42, 0.42):
        b.rect(x - 0.14, 0, x + 0.14, 0.72, c)
        b.poly([(x - 0.18, 0.72), (x + 0.18, 0.72), (x, 1.0)], dark)
    b.rect(-0.1, 0, 0.1, 0.28, (90, 60, 40))


def _tent(b, c, dark, lit):
    b.poly([(-0.68, 0), (0.68, 0), (0, 0.86)], c)
    b.poly([(-0.2, 0), (0.2, 0), (0, 0.56)], lit)
    b.poly([(-0.02, 0.84), (-0.02, 1.0), (0.16, 0.92)], dark)


def _windmill(b, c, dark, lit):
    b.poly([(-0.28, 0), (0.28, 0), (0.17, 0.66), (-0.17, 0.66)], c)
    b.poly([(-0.2, 0.64), (0.2, 0.64), (0, 0.82)], dark)
    for dx, dy in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        x, y, s = 0, 0.66, 0.36
        b.poly([(x, y), (x + dx * s, y + dy * s - dx * dy * 0.07 * dx), (x + dx * s + 0.02, y + dy * s + 0.1)],
               (250, 246, 232))
    b.rect(-0.07, 0, 0.07, 0.2, (90, 60, 40))


def _lighthouse(b, c, dark, lit):
    b.poly([(-0.2, 0), (0.2, 0), (0.13, 0.74), (-0.13, 0.74)], c)
    b.poly([(-0.17, 0.3), (0.17, 0.3), (0.155, 0.42), (-0.155, 0.42)], dark)
    b.rect(-0.13, 0.74, 0.13, 0.88, (255, 240, 150))
    b.poly([(-0.17, 0.88), (0.17, 0.88), (0, 1.0)], dark)


def _balloon(b, c, dark, lit):
    b.poly([(-0.3, 0.42), (0.3, 0.42), (0.09, 0.16), (-0.09, 0.16)], c)
    b.oval(0, 0.64, 0.38, 0.36, c)
    b.oval(0, 0.64, 0.13, 0.36, dark)
    b.rect(-0.1, 0, 0.1, 0.13, (140, 90, 45))


_DRAW = {"house": _house, "tree": _tree, "boat": _boat, "castle": _castle, "tent": _tent,
         "windmill": _windmill, "lighthouse": _lighthouse, "balloon": _balloon}


def _sky(scene, rng, horizon):
    top, low = _SKY[scene.time]
    if scene.weather == "rain":
        grey = (70, 74, 88) if scene.time == "night" else (140, 146, 158)
        top, low = _mix(top, grey, 0.5), _mix(low, grey, 0.5)
    canvas = np.empty((_W, _W, 3), np.float32)
    canvas[:] = _gradient(top, low, horizon + 30)[np.minimum(np.arange(_W), horizon + 29)]
    img = Image.fromarray(canvas.astype(np.uint8))
    d = ImageDraw.Draw(img)
    x, r = rng.choice([0.2, 0.5, 0.8]) * _W + rng.uniform(-16, 16), rng.uniform(17, 22)
    if scene.time == "night":
        if scene.weather != "rain":
            for _ in range(rng.randint(9, 14)):
                sx, sy = rng.uniform(0, _W), rng.uniform(0, horizon * 0.8)
                d.ellipse([sx - 3, sy - 3, sx + 3, sy + 3], fill=(255, 255, 225))
        d.ellipse([x - r, 34 - r, x + r, 34 + r], fill=(245, 242, 215))
        d.ellipse([x - r + 14, 30 - r, x + r + 14, 30 + r], fill=_mix(top, low, 0.1))
    elif scene.time == "day":
        d.ellipse([x - r, 34 - r, x + r, 34 + r], fill=(255, 236, 90))
    elif scene.time == "sunset":
        r *= 1.7
        d.ellipse([x - r, horizon - 14 - r, x + r, horizon - 14 + r], fill=(255, 226, 110))
    else:
        d.ellipse([x - r, horizon - 16 - r, x + r, horizon - 16 + r], fill=(255, 246, 222))
    if scene.weather == "rainbow":
        cx, rad = _W / 2 + rng.uniform(-30, 30), rng.uniform(104, 122)
        for i, c in enumerate([(230, 40, 40), (250, 150, 30), (250, 230, 50), (50, 180, 70), (50, 90, 230), (140, 60, 190)]):
            q = rad - 7 * i
            d.arc([cx - q, horizon + 6 - q, cx + q, horizon + 6 + q], 180, 360, fill=c, width=8)
    return img, d


def _clouds(scene, rng, d):
    if scene.weather not in ("cloudy", "rain"):
        return
    base = (246, 248, 252) if scene.weather == "cloudy" else (104, 108, 120)
    c = _shade(base, 0.62 if scene.time == "night" else 1.0)
    n, y0 = (3, 40) if scene.weather == "cloudy" else (4, 24)
    for i in range(n):
        x, y = (i + 0.5) * _W / n + rng.uniform(-18, 18), y0 + rng.uniform(-10, 14)
        s = rng.uniform(0.9, 1.2)
        for dx, dy, r in ((-24, 6, 17), (0, -4, 24), (26, 5, 18)):
            d.ellipse([x + (dx - r) * s, y + (dy - r) * s, x + (dx + r) * s, y + (dy + r) * s], fill=c)
        d.rectangle([x - 32 * s, y + 4 * s, x + 36 * s, y + 22 * s], fill=c)


def _hills(rng, y, amp, step=8):
    p1, p2 = rng.uniform(0, 6.3), rng.uniform(0, 6.3)
    xs = np.arange(0, _W + step, step)
    ys = y + amp * np.sin(xs / 41 + p1) + amp * 0.6 * np.sin(xs / 23 + p2)
    return list(zip(xs.tolist(), ys.tolist()))


def _ground(scene, rng, d, horizon):
    light = _LIGHT[scene.time]
    far, near = (_shade(c, light) for c in _GROUND[scene.terrain])
    if scene.terrain == "mountains":
        rock = _shade((120, 120, 135), light)
        for x, h in ((rng.uniform(20, 70), 74), (rng.uniform(180, 230), 84), (rng.uniform(105, 150), 104)):
            h *= rng.uniform(0.9, 1.1)
            d.polygon([(x - h, horizon + 12), (x + h, horizon + 12), (x, horizon - h)], fill=rock)
            d.polygon([(x - h * 0.3, horizon - h * 0.68), (x + h * 0.3, horizon - h * 0.68), (x, horizon - h)],
                      fill=_shade((248, 250, 255), max(light, 0.7)))
    if scene.terrain == "forest":
        for i in range(9):
            x, h = i * 32 + rng.uniform(-7, 7), rng.uniform(52, 76)
            d.polygon([(x - 23, horizon + 12), (x + 23, horizon + 12), (x, horizon - h)],
                      fill=_shade((26, 82, 44), light * rng.uniform(0.85, 1.1)))
    amp = {"sea": 0, "mountains": 4, "forest": 2}.get(scene.terrain, 8)
    d.polygon(_hills(rng, horizon, amp) + [(_W, _W), (0, _W)], fill=far)
    d.polygon(_hills(rng, horizon + 44, amp) + [(_W, _W), (0, _W)], fill=near)
    if scene.terrain == "sea":
        foam = _shade((130, 200, 230), light)
        for y in range(int(horizon) + 14, _W, 26):
            off = rng.uniform(0, 56)
            for k in range(-1, 5):
                x = off + k * 56
                d.arc([x, y, x + 30, y + 14], 0, 180, fill=foam, width=5)


def _place(subject, rng, horizon):
    cx = {"left": 0.24, "center": 0.5, "right": 0.76}[subject.place] * _W + rng.uniform(-7, 7)
    h = (144 if subject.size == "large" else 94) * rng.uniform(0.94, 1.06)
    wide = {"tent": 0.82, "boat": 0.92, "castle": 0.88, "house": 0.9}.get(subject.kind, 1.0)
    h *= wide
    if subject.kind == "balloon":
        foot = rng.uniform(14, 26) + h
    else:
        foot = horizon + rng.uniform(62, 78)
    return cx, foot, h


def draw(scene: Scene, rng: random.Random) -> np.ndarray:
    """The scene as uint8 pixels, shape (64, 64, 3)."""
    horizon = int(rng.uniform(136, 152))
    img, d = _sky(scene, rng, horizon)
    _clouds(scene, rng, d)
    _ground(scene, rng, d, horizon)
    if scene.weather == "rain":
        streak = (200, 215, 235)
        for _ in range(34):
            x, y = rng.uniform(0, _W + 30), rng.uniform(40, _W)
            d.line([(x, y), (x - 7, y + 20)], fill=streak, width=3)
    if scene.weather == "fog":
        arr = np.asarray(img, np.float32)
        white = np.float32((150, 155, 170) if scene.time == "night" else (236, 238, 240))
        ys = np.arange(_W, dtype=np.float32)
        a = np.zeros(_W, np.float32)
        for y in (horizon - 60, horizon - 4, horizon + 56):
            a = np.maximum(a, 0.8 * np.exp(-(((ys - y - rng.uniform(-6, 6)) / 15) ** 2)))
        img = Image.fromarray((arr * (1 - a[:, None, None]) + white * a[:, None, None]).astype(np.uint8))
    lit = (255, 230, 120) if scene.time == "night" else (200, 225, 240)
    d = ImageDraw.Draw(img)
    for s in scene.subjects:
        cx, foot, h = _place(s, rng, horizon)
        c = RGB[s.colour]
        dark = (88, 84, 92) if s.colour == "black" else _shade(c, 0.72)
        line = (205, 205, 215) if s.colour == "black" else (40, 34, 40)
        _DRAW[s.kind](_Brush(d, cx, foot, h, line), c, dark, lit)
    return np.asarray(img.reduce(_SS))


def labels(scene: Scene) -> np.ndarray:
    """Ground truth for the classifier, shape (12,): time, terrain, weather, then per place (left, center,
    right) kind (0 = nothing there), colour, size; colour and size are -1 where nothing stands."""
    at = {s.place: s for s in scene.subjects}
    row = [TIMES.index(scene.time), TERRAINS.index(scene.terrain), WEATHERS.index(scene.weather)]
    for p in PLACES:
        s = at.get(p)
        row += [0, -1, -1] if s is None else [1 + KINDS.index(s.kind), COLOURS.index(s.colour), SIZES.index(s.size)]
    return np.array(row, np.int64)


# ---- captions ------------------------------------------------------------------------------

SAY = {
    "day": ["during the day", "by day", "at noon", "in the daytime", "in broad daylight"],
    "sunset": ["at sunset", "at dusk", "in the evening", "as the sun sets"],
    "night": ["at night", "by night", "under the moon", "in the moonlight", "at midnight"],
    "dawn": ["at dawn", "at sunrise", "in the early morning", "at daybreak"],
    "meadow": ["in a meadow", "on a meadow", "on green hills", "in a grassy field", "on the grass"],
    "desert": ["in the desert", "on sand dunes", "in a sandy desert", "on the sand"],
    "snow": ["in the snow", "on snowy hills", "on a snowy field", "in a winter landscape"],
    "sea": ["on the sea", "at sea", "on the ocean", "on the water", "on blue waves"],
    "mountains": ["in the mountains", "among mountains", "below snowy peaks", "in front of mountains"],
    "forest": ["in the forest", "in the woods", "by a forest", "among fir trees"],
    "clear": ["under a clear sky", "in clear weather", "with a clear sky", "with no clouds"],
    "cloudy": ["under clouds", "under a cloudy sky", "with white clouds", "in cloudy weather"],
    "rain": ["in the rain", "on a rainy day", "in rainy weather", "with rain falling", "while it rains"],
    "fog": ["in the fog", "in fog", "in the mist", "in foggy weather", "with mist around"],
    "rainbow": ["with a rainbow", "under a rainbow", "below a rainbow", "and a rainbow"],
    "left": ["on the left", "on the left side", "to the left", "at left"],
    "center": ["in the middle", "in the center", "in the centre", "at the center"],
    "right": ["on the right", "on the right side", "to the right", "at right"],
    "small": ["small", "little", "tiny"], "large": ["large", "big", "huge", "great"],
    "house": ["house", "cottage", "home"], "tree": ["tree"], "boat": ["boat", "sailboat", "ship"],
    "castle": ["castle", "fortress", "palace"], "tent": ["tent"], "windmill": ["windmill", "mill"],
    "lighthouse": ["lighthouse"], "balloon": ["balloon", "hot air balloon"],
    "purple": ["purple", "violet"], "red": ["red", "scarlet", "crimson"], "yellow": ["yellow", "golden"],
}
_OPENERS = ["", "", "", "", "a picture of ", "a painting of ", "a storybook scene with ", "an illustration of "]


def _say(rng, word):
    return rng.choice(SAY.get(word, [word]))


def _subject(rng, s, keep):
    """A noun phrase, where it stands (or nothing), and what was named."""
    named = {"kind": s.kind}
    words = []
    if keep():
        named["size"] = s.size
        words.append(_say(rng, s.size))
    if keep():
        named["colour"] = s.colour
        words.append(_say(rng, s.colour))
    words.append(_say(rng, s.kind))
    phrase = " ".join(words)
    if rng.random() < 0.92:
        phrase = ("an " if phrase[0] in "aeiou" else "a ") + phrase
    place = ""
    if keep():
        named["place"] = s.place
        place = _say(rng, s.place)
    return phrase, place, named


def caption(scene: Scene, rng: random.Random, drop: float = 0.25):
    """A caption and the attributes it names: ({"time": ...}, [{"kind": ..., ...}, ...]).

    Each attribute but the kinds is left out with probability `drop`.
    """
    keep = lambda: rng.random() >= drop
    named, around = {}, []
    for key in ("time", "terrain", "weather"):
        if keep():
            named[key] = getattr(scene, key)
            around.append(_say(rng, named[key]))
    rng.shuffle(around)
    phrases, subjects = [], []
    for i, s in enumerate(scene.subjects):
        phrase, place, n = _subject(rng, s, keep)
        subjects.append(n)
        first = i == 0 and rng.random() < 0.2  # only the first place may precede, or it is ambiguous
        phrases.append(" ".join(filter(None, (place, phrase) if first else (phrase, place))))
    what = rng.choice([" and ", " and ", " with ", ", "]).join(phrases)
    style = rng.random()
    if style < 0.45 or not around:
        text = " ".join([what] + around)
    elif style < 0.65:
        text = ", ".join([what] + around)
    elif style < 0.85:
        text = f"{around[0]}, {' '.join([what] + around[1:])}"
    else:
        text = f"{' '.join(around)}: {what}"
    text = rng.choice(_OPENERS) + text if style < 0.65 else text
    if rng.random() < 0.3:
        text = text[0].upper() + text[1:] + rng.choice(["", "."])
    return text, named, subjects
