"""The storybook world: scenes, the program that draws them, and their captions.

A scene is a handful of discrete attributes (`Scene`, `Subject`) plus free jitter. `draw` draws it in any
size at four times the resolution and averages down, `caption` tells it in one of many ways and says which
attributes it named. Everything is a pure function of a `random.Random`.

Lengths are in units of 1/256 of the picture's short side: a subject is as large in a wide picture as in a
square one, and the landscape is wider. Where something stands is a share of the width and of the height.
"""

import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIZE = 64  # side of the smallest picture, and of what the classifier and the CLIP pair look at
# The sizes that the model paints, (width, height): 64 to 128 a side, so at most twice as long as wide.
PICTURE_SIZES = [(w, h) for w in range(64, 129, 16) for h in range(64, 129, 16)]
_SS = 4  # supersampling per axis
_UNITS = 256  # the short side in units

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


class _Canvas:
    """A picture that is drawn on in units; `w` and `h` are its sides in units, `scale` pixels a unit."""

    def __init__(self, width, height):
        self.scale = min(width, height) * _SS / _UNITS
        self.w, self.h = width * _SS / self.scale, height * _SS / self.scale
        self.pixels = (height * _SS, width * _SS)
        self.img = self.d = None

    def start(self, pixels):
        self.img = Image.fromarray(pixels.astype(np.uint8))
        self.d = ImageDraw.Draw(self.img)

    def rows(self):
        """The height of each row of pixels, in units from above."""
        return np.arange(self.pixels[0], dtype=np.float32) / np.float32(self.scale)

    def _px(self, points):
        return [tuple(v * self.scale for v in p) for p in points]

    def _wide(self, width):
        return max(1, round(width * self.scale))

    def ellipse(self, x0, y0, x1, y1, fill, outline=None, width=0):
        self.d.ellipse(self._px([(x0, y0), (x1, y1)]), fill=fill, outline=outline, width=self._wide(width) if outline else 0)

    def disc(self, x, y, r, fill):
        self.ellipse(x - r, y - r, x + r, y + r, fill)

    def rectangle(self, x0, y0, x1, y1, fill):
        self.d.rectangle(self._px([(x0, y0), (x1, y1)]), fill=fill)

    def arc(self, x0, y0, x1, y1, start, end, fill, width):
        self.d.arc(self._px([(x0, y0), (x1, y1)]), start, end, fill=fill, width=self._wide(width))

    def polygon(self, points, fill):
        self.d.polygon(self._px(points), fill=fill)

    def line(self, points, fill, width):
        self.d.line(self._px(points), fill=fill, width=self._wide(width), joint="curve")


class _Brush:
    """Draws in a subject's own frame: x and y in units of its height, y up from its foot."""

    def __init__(self, c, cx, foot, h, line):
        self.c, self.cx, self.foot, self.h, self.outline = c, cx, foot, h, line

    def _p(self, x, y):
        return (self.cx + x * self.h, self.foot - y * self.h)

    def poly(self, pts, fill):
        pts = [self._p(x, y) for x, y in pts]
        self.c.polygon(pts, fill)
        self.c.line(pts + pts[:2], self.outline, 3)

    def rect(self, x0, y0, x1, y1, fill):
        self.poly([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], fill)

    def oval(self, x, y, rx, ry, fill):
        self.c.ellipse(*self._p(x - rx, y + ry), *self._p(x + rx, y - ry), fill, self.outline, 3)


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
    b.c.ellipse(*b._p(-0.2, 0.8), *b._p(0.2, 0.5), c)


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


def _sky(c, scene, rng, horizon):
    top, low = _SKY[scene.time]
    if scene.weather == "rain":
        grey = (70, 74, 88) if scene.time == "night" else (140, 146, 158)
        top, low = _mix(top, grey, 0.5), _mix(low, grey, 0.5)
    t = np.minimum(c.rows() / (horizon + 29), 1)[:, None]
    colours = np.float32(top) * (1 - t) + np.float32(low) * t
    c.start(np.broadcast_to(colours[:, None, :], (*c.pixels, 3)))
    x, r = rng.choice([0.2, 0.5, 0.8]) * c.w + rng.uniform(-16, 16), rng.uniform(17, 22)
    if scene.time == "night":
        if scene.weather != "rain":
            for _ in range(round(rng.randint(9, 14) * c.w / _UNITS * c.h / _UNITS)):
                c.disc(rng.uniform(0, c.w), rng.uniform(0, horizon * 0.8), 3, (255, 255, 225))
        c.disc(x, 34, r, (245, 242, 215))
        c.disc(x + 14, 30, r, _mix(top, low, 0.1))
    elif scene.time == "day":
        c.disc(x, 34, r, (255, 236, 90))
    elif scene.time == "sunset":
        c.disc(x, horizon - 14, r * 1.7, (255, 226, 110))
    else:
        c.disc(x, horizon - 16, r, (255, 246, 222))
    if scene.weather == "rainbow":
        cx, rad = c.w / 2 + rng.uniform(-30, 30), rng.uniform(104, 122)
        for i, colour in enumerate([(230, 40, 40), (250, 150, 30), (250, 230, 50), (50, 180, 70), (50, 90, 230), (140, 60, 190)]):
            q = rad - 7 * i
            c.arc(cx - q, horizon + 6 - q, cx + q, horizon + 6 + q, 180, 360, colour, 8)


def _clouds(c, scene, rng):
    if scene.weather not in ("cloudy", "rain"):
        return
    base = (246, 248, 252) if scene.weather == "cloudy" else (104, 108, 120)
    colour = _shade(base, 0.62 if scene.time == "night" else 1.0)
    n, y0 = (3, 40) if scene.weather == "cloudy" else (4, 24)
    n = round(n * c.w / _UNITS)
    for i in range(n):
        x, y = (i + 0.5) * c.w / n + rng.uniform(-18, 18), y0 + rng.uniform(-10, 14)
        s = rng.uniform(0.9, 1.2)
        for dx, dy, r in ((-24, 6, 17), (0, -4, 24), (26, 5, 18)):
            c.ellipse(x + (dx - r) * s, y + (dy - r) * s, x + (dx + r) * s, y + (dy + r) * s, colour)
        c.rectangle(x - 32 * s, y + 4 * s, x + 36 * s, y + 22 * s, colour)


def _hills(c, rng, y, amp, step=8):
    """A wavy outline at height y, and down to the picture's lower edge."""
    p1, p2 = rng.uniform(0, 6.3), rng.uniform(0, 6.3)
    xs = np.arange(0, c.w + step, step)
    ys = y + amp * np.sin(xs / 41 + p1) + amp * 0.6 * np.sin(xs / 23 + p2)
    return list(zip(xs.tolist(), ys.tolist())) + [(c.w, c.h), (0, c.h)]


def _ground(c, scene, rng, horizon):
    light, wide, high = _LIGHT[scene.time], c.w / _UNITS, c.h / _UNITS
    far, near = (_shade(colour, light) for colour in _GROUND[scene.terrain])
    if scene.terrain == "mountains":
        rock, ice = _shade((120, 120, 135), light), _shade((248, 250, 255), max(light, 0.7))
        for x, h in ((rng.uniform(20, 70), 74), (rng.uniform(180, 230), 84), (rng.uniform(105, 150), 104)):
            h *= rng.uniform(0.9, 1.1)
            x, w, h = x * wide, h * wide, h * high
            c.polygon([(x - w, horizon + 12), (x + w, horizon + 12), (x, horizon - h)], rock)
            c.polygon([(x - w * 0.3, horizon - h * 0.68), (x + w * 0.3, horizon - h * 0.68), (x, horizon - h)], ice)
    if scene.terrain == "forest":
        for i in range(math.ceil(c.w / 32) + 1):
            x, h = i * 32 + rng.uniform(-7, 7), rng.uniform(52, 76)
            c.polygon([(x - 23, horizon + 12), (x + 23, horizon + 12), (x, horizon - h)],
                      _shade((26, 82, 44), light * rng.uniform(0.85, 1.1)))
    amp = {"sea": 0, "mountains": 4, "forest": 2}.get(scene.terrain, 8)
    c.polygon(_hills(c, rng, horizon, amp), far)
    c.polygon(_hills(c, rng, horizon + 44 * high, amp), near)
    if scene.terrain == "sea":
        foam = _shade((130, 200, 230), light)
        for y in range(int(horizon) + 14, int(c.h), 26):
            off = rng.uniform(0, 56)
            for k in range(-1, math.ceil(c.w / 56)):
                x = off + k * 56
                c.arc(x, y, x + 30, y + 14, 0, 180, foam, 5)


def _rain(c, rng):
    for _ in range(round(34 * c.w / _UNITS * c.h / _UNITS)):
        x, y = rng.uniform(0, c.w + 30), rng.uniform(40, c.h)
        c.line([(x, y), (x - 7, y + 20)], (200, 215, 235), 3)


def _fog(c, scene, rng, horizon):
    white = np.float32((150, 155, 170) if scene.time == "night" else (236, 238, 240))
    a = np.zeros(c.pixels[0], np.float32)
    for y in (horizon - 60, horizon - 4, horizon + 56 * c.h / _UNITS):
        a = np.maximum(a, 0.8 * np.exp(-(((c.rows() - y - rng.uniform(-6, 6)) / 15) ** 2)))
    a = a[:, None, None]
    c.start(np.asarray(c.img, np.float32) * (1 - a) + white * a)


def _place(c, subject, rng, horizon):
    """Where a subject's middle and foot are, and how tall it is."""
    cx = {"left": 0.24, "center": 0.5, "right": 0.76}[subject.place] * c.w + rng.uniform(-7, 7)
    h = (144 if subject.size == "large" else 94) * rng.uniform(0.94, 1.06)
    h *= {"tent": 0.82, "boat": 0.92, "castle": 0.88, "house": 0.9}.get(subject.kind, 1.0)
    if subject.kind == "balloon":
        return cx, rng.uniform(14, 26) + h, h
    return cx, horizon + rng.uniform(62, 78) * c.h / _UNITS, h


def draw(scene: Scene, rng: random.Random, width: int = SIZE, height: int = SIZE) -> np.ndarray:
    """The scene as uint8 pixels, shape (height, width, 3)."""
    c = _Canvas(width, height)
    horizon = int(rng.uniform(136, 152)) * c.h / _UNITS
    _sky(c, scene, rng, horizon)
    _clouds(c, scene, rng)
    _ground(c, scene, rng, horizon)
    if scene.weather == "rain":
        _rain(c, rng)
    if scene.weather == "fog":
        _fog(c, scene, rng, horizon)
    lit = (255, 230, 120) if scene.time == "night" else (200, 225, 240)
    for s in scene.subjects:
        cx, foot, h = _place(c, s, rng, horizon)
        colour = RGB[s.colour]
        dark = (88, 84, 92) if s.colour == "black" else _shade(colour, 0.72)
        line = (205, 205, 215) if s.colour == "black" else (40, 34, 40)
        _DRAW[s.kind](_Brush(c, cx, foot, h, line), colour, dark, lit)
    return np.asarray(c.img.reduce(_SS))


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
