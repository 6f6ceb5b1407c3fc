"""The small world that the tiny checkpoint knows: random contents for clips and images.

Positions and lengths are in units of the picture's shorter side. Positions are
measured from the picture's centre, x to the right and y down. A time of 0 is a
clip's first frame, a time of 1 its last.
"""

import colorsys
from dataclasses import dataclass
from typing import Literal

import numpy as np

SHAPES = ("circle", "square", "triangle")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
EVENTS = ("appears", "vanishes", "changes")
BEHAVIOURS = (*DIRECTIONS, "stays", *EVENTS)
# Each colour's ranges of hue (in degrees), saturation and value.
COLOURS = {
    "red": ((-10, 6), (0.8, 1.0), (0.65, 1.0)),
    "green": ((95, 145), (0.7, 1.0), (0.45, 1.0)),
    "blue": ((212, 244), (0.7, 1.0), (0.6, 1.0)),
    "yellow": ((53, 62), (0.75, 1.0), (0.8, 1.0)),
    "purple": ((270, 300), (0.65, 1.0), (0.45, 1.0)),
    "orange": ((22, 40), (0.8, 1.0), (0.85, 1.0)),
}
BACKGROUNDS = ("plain", "noisy", "gradient", "stripes", "chequered")

_RADIUS = (0.08, 0.20)
_EVENT_TIMES = (0.15, 0.85)
# Time between two events; it leaves at least three of the eight frames between them.
_BETWEEN_EVENTS = 0.45
_SIDES = (240, 480)
_FRAMES = (24, 96)
_FPS = (12, 30)


@dataclass(frozen=True)
class Thing:
    """An object: a coloured shape that moves, stays, appears, vanishes or changes its colour.

    Attributes:
        rgb: its colour at first.
        radius: the circle's radius; for other shapes, half of the largest height and width.
        proportion: for shapes other than the circle, from 0 (narrowest) to 1 (fills the largest height and width).
        start: its centre in the first frame, `(x, y)`.
        end: its centre in the last frame.
        event_time: the time at which it appears, vanishes or changes its colour.
        new_colour: the colour that it changes to.
    """

    shape: str
    colour: str
    rgb: tuple[int, int, int]
    radius: float
    proportion: float
    behaviour: str
    start: tuple[float, float]
    end: tuple[float, float]
    event_time: float
    new_colour: str
    new_rgb: tuple[int, int, int]

    @property
    def moves(self) -> bool:
        return self.behaviour in DIRECTIONS

    def centre(self, time: float) -> tuple[float, float]:
        (x0, y0), (x1, y1) = self.start, self.end
        return x0 + (x1 - x0) * time, y0 + (y1 - y0) * time

    def is_visible(self, time: float) -> bool:
        if self.behaviour == "appears":
            return time >= self.event_time
        return self.behaviour != "vanishes" or time < self.event_time

    def has_changed(self, time: float) -> bool:
        return self.behaviour == "changes" and time >= self.event_time


@dataclass(frozen=True)
class Background:
    """The background behind the objects: one colour, or two in a pattern.

    Attributes:
        scale: size of a stripe or a chequer, in pixels.
        angle: direction of stripes and gradients, in radians.
    """

    kind: str
    rgb: tuple[int, int, int]
    second_rgb: tuple[int, int, int]
    scale: float
    angle: float
    seed: int


@dataclass(frozen=True)
class Scene:
    """The contents of a clip or an image; an image is a clip of one frame."""

    width: int
    height: int
    num_frames: int
    fps: int
    background: Background
    things: tuple[Thing, ...]

    @property
    def medium(self) -> Literal["image", "video"]:
        return "image" if self.num_frames == 1 else "video"


def random_clip_scene(
    rng: np.random.Generator,
    num_things: int | None = None,
    *,
    shape: str | None = None,
    colour: str | None = None,
    behaviour: str | None = None,
) -> Scene:
    """Choose a random scene for a clip: at most one object moves, and if there are two events, one is an appearance.

    Both objects have an event in a third of the scenes with two objects, and in some of the other two thirds.

    Args:
        num_things: 1 or 2; random by default.
        shape, colour, behaviour: those of the first object; random by default.
    """
    count = num_things or int(rng.integers(1, 3))
    if behaviour is None and count == 2 and rng.random() < 1 / 3:
        behaviours = ["appears", _choose(rng, EVENTS)]
    else:
        first = behaviour or _choose(rng, BEHAVIOURS)
        behaviours = [first, _choose(rng, _beside(first))][:count]
    things = _random_things(rng, behaviours, shape, colour)
    return _random_scene(rng, things, int(rng.integers(_FRAMES[0], _FRAMES[1] + 1)))


def _beside(behaviour: str) -> tuple[str, ...]:
    """Return the behaviours open to a second object: only one may move, and one of two events is an appearance."""
    if behaviour in DIRECTIONS:
        return ("stays", *EVENTS)
    if behaviour in EVENTS and behaviour != "appears":
        return (*DIRECTIONS, "stays", "appears")
    return BEHAVIOURS


def random_image_scene(rng: np.random.Generator, num_things: int | None = None) -> Scene:
    """Choose a random scene for an image; see `random_clip_scene`."""
    count = num_things or int(rng.integers(1, 3))
    return _random_scene(rng, _random_things(rng, ["stays"] * count, None, None), 1)


def _random_scene(rng: np.random.Generator, things: tuple[Thing, ...], num_frames: int) -> Scene:
    # H.264's usual pixel format needs even sides.
    shorter, longer = sorted(2 * int(side) for side in rng.integers(_SIDES[0] // 2, _SIDES[1] // 2 + 1, 2))
    width, height = ((longer, shorter), (shorter, longer), (shorter, shorter))[rng.integers(3)]
    fps = int(rng.integers(_FPS[0], _FPS[1] + 1))
    return Scene(width, height, num_frames, fps, _random_background(rng), things)


def _random_background(rng: np.random.Generator) -> Background:
    # Light, dark or in between, and never as colourful as an object.
    value = rng.choice([rng.uniform(0.03, 0.35), rng.uniform(0.65, 1.0), rng.uniform(0.35, 0.65)], p=[0.4, 0.4, 0.2])
    hue, saturation = rng.uniform(0, 360), rng.uniform(0, 0.25)
    contrast = rng.uniform(0.03, 0.2) * rng.choice([-1, 1])
    return Background(
        kind=_choose(rng, BACKGROUNDS),
        rgb=_to_rgb(hue, saturation, value),
        second_rgb=_to_rgb(hue + rng.uniform(-40, 40), saturation, float(np.clip(value + contrast, 0, 1))),
        scale=float(rng.uniform(6, 48)),
        angle=float(rng.uniform(0, np.pi)),
        seed=int(rng.integers(2**31)),
    )


def _random_things(
    rng: np.random.Generator, behaviours: list[str], shape: str | None, colour: str | None
) -> tuple[Thing, ...]:
    """Choose random objects, with room between them and of different shapes, so that a shape names an object."""
    shapes = [str(name) for name in rng.permutation(SHAPES)]
    if shape:
        shapes.remove(shape)
        shapes.insert(0, shape)
    times = _random_event_times(rng)
    while True:
        things = tuple(
            _random_thing(rng, name, colour if index == 0 else None, behaviour, times[index])
            for index, (name, behaviour) in enumerate(zip(shapes, behaviours, strict=False))
        )
        if len(things) == 1 or not _touch(*things):
            return things


def _random_event_times(rng: np.random.Generator) -> list[float]:
    while True:
        times = rng.uniform(*_EVENT_TIMES, 2)
        if abs(times[0] - times[1]) >= _BETWEEN_EVENTS:
            return [float(time) for time in times]


def _random_thing(rng: np.random.Generator, shape: str, colour: str | None, behaviour: str, event_time: float) -> Thing:
    colour = colour or _choose(rng, tuple(COLOURS))
    new_colour = _choose(rng, tuple(name for name in COLOURS if name != colour))
    radius = float(rng.uniform(*_RADIUS))
    start, end = _random_path(rng, behaviour, radius)
    return Thing(
        shape=shape,
        colour=colour,
        rgb=_random_rgb(rng, colour),
        radius=radius,
        proportion=float(rng.random()),
        behaviour=behaviour,
        start=start,
        end=end,
        event_time=event_time,
        new_colour=new_colour,
        new_rgb=_random_rgb(rng, new_colour),
    )


def _random_path(
    rng: np.random.Generator, behaviour: str, radius: float
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Choose where an object starts and ends; one that moves may be cut off by the edge at either point."""
    room = 0.5 - radius
    if behaviour not in DIRECTIONS:
        place = tuple(float(value) for value in rng.uniform(-room, room, 2))
        return place, place
    distance = rng.uniform(0.25, 1.0)
    from_, to = -0.5, 0.5 - distance
    along = rng.uniform(from_, to)
    across = rng.uniform(-room, room)
    x, y = DIRECTIONS[behaviour]
    ends = (along, along + distance) if x + y > 0 else (along + distance, along)
    points = [(float(end), float(across)) if x else (float(across), float(end)) for end in ends]
    return points[0], points[1]


def _touch(one: Thing, other: Thing) -> bool:
    """Tell whether two objects come close to each other at any time, visible or not."""
    reach = 1.5 * max(one.radius, other.radius) + min(one.radius, other.radius)
    times = np.linspace(0, 1, 25)
    return any(np.hypot(*np.subtract(one.centre(time), other.centre(time))) < reach for time in times)


def _random_rgb(rng: np.random.Generator, colour: str) -> tuple[int, int, int]:
    return _to_rgb(*(rng.uniform(*span) for span in COLOURS[colour]))


def _to_rgb(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue / 360 % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _choose(rng: np.random.Generator, names: tuple[str, ...]) -> str:
    return names[rng.integers(len(names))]
