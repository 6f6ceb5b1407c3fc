"""The tiny world: pictures show what the scene says, questions have one right answer, a seed gives the same again."""

import colorsys
import itertools
import json
import subprocess
import sys

import av
import numpy as np
import pytest
from PIL import Image

from helpers.directions import DIRECTIONS
from helpers.paths import ROOT
from vllm_videollava.tiny import generator
from vllm_videollava.tiny.drawing import draw_frames, write_video
from vllm_videollava.tiny.generator import write_examples
from vllm_videollava.tiny.questions import only_colour, questions_about, questions_about_both
from vllm_videollava.tiny.world import (
    BEHAVIOURS,
    COLOURS,
    SHAPES,
    Background,
    Scene,
    Thing,
    random_clip_scene,
    random_image_scene,
)

HUES = {"red": 0, "orange": 33, "yellow": 58, "green": 120, "blue": 230, "purple": 285}


def scene_with(behaviour: str, shape: str = "circle", colour: str = "red", seed: int = 0):
    rng = np.random.default_rng(seed)
    while True:
        scene = random_clip_scene(rng, 1, shape=shape, colour=colour, behaviour=behaviour)
        if scene.background.kind == "plain":
            return scene


def mask(frame: np.ndarray) -> np.ndarray:
    """Where a frame is not its background, whose one colour is in most corners."""
    corners = [frame[y, x].astype(int) for y, x in itertools.product((0, -1), (0, -1))]
    background = np.median(corners, axis=0)
    return np.abs(frame - background).sum(-1) > 40


def named_colour(frame: np.ndarray) -> str:
    """The name of the hue of what is not background."""
    rgb = np.median(frame[mask(frame)], axis=0)
    hue = 360 * colorsys.rgb_to_hsv(*(rgb / 255))[0]
    return min(HUES, key=lambda name: abs((HUES[name] - hue + 180) % 360 - 180))


def test_clips_and_images_are_within_the_worlds_limits():
    rng = np.random.default_rng(0)
    kinds = set()
    for _ in range(300):
        for scene in (random_clip_scene(rng), random_image_scene(rng)):
            assert 240 <= min(scene.width, scene.height) <= max(scene.width, scene.height) <= 480
            assert 1 <= len(scene.things) <= 2
            assert all(0.08 <= thing.radius <= 0.2 for thing in scene.things)
            kinds.add((np.sign(scene.width - scene.height), scene.background.kind))
            if scene.medium == "video":
                assert 24 <= scene.num_frames <= 96
                assert 12 <= scene.fps <= 30
                kinds |= {(thing.shape, thing.behaviour) for thing in scene.things}
                kinds |= {(thing.colour,) for thing in scene.things}
    backgrounds = ("plain", "noisy", "gradient", "stripes", "chequered")
    assert kinds == {
        *itertools.product((-1, 0, 1), backgrounds),
        *itertools.product(SHAPES, BEHAVIOURS),
        *((colour,) for colour in COLOURS),
    }


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("shape", SHAPES)
def test_an_object_has_its_shape_and_colour(shape, colour):
    scene = scene_with("stays", shape, colour)
    (frame,) = draw_frames(scene, [0])
    inside = mask(frame)
    assert named_colour(frame) == colour
    rows, columns = np.nonzero(inside)
    filled = inside.sum() / (np.ptp(rows) + 1) / (np.ptp(columns) + 1)
    expected = {"circle": np.pi / 4, "square": 1.0, "triangle": 0.5}[shape]
    assert filled == pytest.approx(expected, abs=0.04)


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
@pytest.mark.parametrize("seed", range(3))
def test_an_object_does_what_it_is_said_to_do(behaviour, seed):
    scene = scene_with(behaviour, seed=seed)
    frames = draw_frames(scene)
    first, last = frames[0], frames[-1]
    if behaviour in ("appears", "vanishes"):
        assert (mask(first).any(), mask(last).any()) == (behaviour == "vanishes", behaviour == "appears")
        return
    centres = [np.mean(np.nonzero(mask(frame))[::-1], axis=1) for frame in (first, last)]
    move = (centres[1] - centres[0]) / min(first.shape[:2])
    if behaviour in DIRECTIONS:
        assert np.dot(move, DIRECTIONS[behaviour]) > 0.15
        assert abs(np.dot(move, DIRECTIONS[behaviour][::-1])) < 0.05
    else:
        assert np.abs(move).max() < 0.01
        expected = {"stays": scene.things[0].colour, "changes": scene.things[0].new_colour}[behaviour]
        assert (named_colour(first), named_colour(last)) == ("red", expected)


def test_a_clip_is_h264_of_the_scenes_size_and_length(tmp_path):
    scene = random_clip_scene(np.random.default_rng(4))
    with av.open(str(write_video(scene, tmp_path / "clip.mp4"))) as clip:
        (stream,) = clip.streams
        assert stream.codec_context.name == "h264"
        assert stream.average_rate == scene.fps
        frames = [frame.to_ndarray(format="rgb24") for frame in clip.decode(stream)]
    drawn = draw_frames(scene)
    assert drawn.shape == (scene.num_frames, scene.height, scene.width, 3)
    assert len(frames) == len(drawn)
    assert np.abs(np.stack(frames).astype(int) - drawn).mean() < 8


def test_of_two_objects_at_most_one_moves():
    rng = np.random.default_rng(8)
    scenes = [random_clip_scene(rng, 2) for _ in range(300)]
    assert {sum(thing.moves for thing in scene.things) for scene in scenes} == {0, 1}


def test_of_two_events_one_is_that_an_object_appears():
    rng = np.random.default_rng(9)
    pairs = [[thing.behaviour for thing in random_clip_scene(rng, 2).things] for _ in range(300)]
    pairs = [frozenset(pair) for pair in pairs if set(pair) <= {"appears", "vanishes", "changes"}]
    assert set(pairs) == {frozenset({"appears", other}) for other in ("appears", "vanishes", "changes")}


def test_events_are_three_sampled_frames_apart():
    rng = np.random.default_rng(5)
    for _ in range(200):
        scene = random_clip_scene(rng, 2)
        times = np.linspace(0, scene.num_frames - 1, 8, dtype=int) / (scene.num_frames - 1)
        first, second = sorted(thing.event_time for thing in scene.things)
        assert sum(first <= time < second for time in times) >= 3


def test_answers_name_exactly_one_shape_colour_or_direction():
    rng = np.random.default_rng(6)
    named = {"shape": SHAPES, "colour of the object": COLOURS, "colour": COLOURS, "direction": tuple(DIRECTIONS)}
    asked = set()
    for _ in range(300):
        for question in questions_about(random_clip_scene(rng), rng):
            asked.add(question.text)
            if question.kind in named:
                words = question.answer.rstrip(".").split()
                assert sum(name in words for name in named[question.kind]) == 1
    assert asked >= {
        "What shape is in the video?",
        "What colour is the circle?",
        "Which way does the square move?",
    }


def scene_of(*things: str, num_frames: int = 24) -> Scene:
    """Make a scene with objects such as "red circle left" or "red square changes 0.5 blue"."""
    made, place, ink = [], (0.0, 0.0), (0, 0, 0)
    for words in things:
        colour, shape, behaviour, time, new_colour = (*words.split(), "0", "")[:5]
        made.append(Thing(shape, colour, ink, 0.1, 0.5, behaviour, place, place, float(time), new_colour, ink))
    return Scene(320, 240, num_frames, 12, Background("plain", ink, ink, 8, 0, 0), tuple(made))


CASES = {
    ("red circle left",): {
        "shape": "It is a circle.",
        "colour of the object": "The circle is red.",
        "colour": "The circle is red.",
        "count": "There is one object.",
        "direction": "The circle moves left.",
        "motion": "The circle moves.",
        "contents": "A red circle.",
        "description": "A red circle moves left.",
    },
    ("orange square stays", "blue circle up"): {
        "count": "There are two objects.",
        "contents": "A blue circle and an orange square.",
        "description": "A blue circle moves up and an orange square stays.",
    },
    ("purple triangle stays",): {"motion": "The triangle stays."},
    ("red square appears 0.2", "red circle changes 0.7 orange"): {
        "order": "The square appears first.",
        "description": "A circle changes from red to orange and a red square appears.",
    },
    ("red square vanishes 0.8", "green circle changes 0.4 orange"): {"order": "The circle changes colour first."},
    ("yellow circle changes 0.4 blue",): {
        "colour": "The circle is yellow at first.",
        "description": "A circle changes from yellow to blue.",
    },
}


@pytest.mark.parametrize(("things", "expected"), CASES.items(), ids=map(" and ".join, CASES))
def test_answers_are_what_a_person_would_say(things, expected):
    asked = questions_about(scene_of(*things), np.random.default_rng(0))
    answers = {question.kind: question.answer for question in asked}
    assert {kind: answers[kind] for kind in expected} == expected
    assert ("order" in answers) == ("order" in expected)


def test_questions_about_a_clip_and_an_image():
    rng = np.random.default_rng(7)
    video = scene_of("red circle left")
    same, *_ = questions_about_both(video, scene_of("blue square stays", num_frames=1), rng)
    assert same.answer == "No, the video shows red and the image shows blue."
    same, *others = questions_about_both(video, scene_of("red square stays", num_frames=1), rng)
    assert same.answer == "Yes, both are red."
    about = {"video": "circle", "image": "square"}
    for question in others:
        (medium,) = (medium for medium in about if medium in question.text)
        assert about[medium] in question.answer


@pytest.mark.parametrize(
    ("things", "expected"),
    [
        (("red circle left",), "red"),
        (("red circle changes 0.5 blue",), None),
        (("red circle up", "red square up"), None),
    ],
)
def test_only_one_object_that_keeps_its_colour_is_compared(things, expected):
    assert only_colour(scene_of(*things)) == expected


def test_half_of_the_comparisons_are_of_the_same_colour(tmp_path):
    examples = write_examples(tmp_path, 16, 80, seed=1)
    answers = [question.answer for _, question in examples if question.kind == "same colour"]
    yes = [answer.startswith("Yes, ") for answer in answers]
    assert yes == [True, False] * (len(yes) // 2) + [True] * (len(yes) % 2)
    assert len(yes) >= 6


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="can be compared"):
        questions_about_both(scene_of("red circle left", "red square stays"), scene_of("red circle stays"), None)


@pytest.mark.parametrize("flag", ["--videos", "--images", "--seed"])
def test_negative_numbers_are_refused(flag, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["generator", str(tmp_path / "new"), flag, "-1"])
    with pytest.raises(SystemExit):
        generator.main()
    assert "--videos, --images and --seed must not be negative." in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_seed_gives_the_same_again(tmp_path):
    written = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        command = [sys.executable, "-m", "vllm_videollava.tiny.generator", tmp_path / name]
        subprocess.run([*command, "--videos", "3", "--images", "4", "--seed", str(seed)], check=True, cwd=ROOT)
        files = sorted(path.name for path in (tmp_path / name).iterdir())
        assert len(files) == 8
        pictures = [np.asarray(Image.open(path)) for path in sorted((tmp_path / name).glob("image-*"))]
        lines = (tmp_path / name / "questions.jsonl").read_text()
        named = {medium for line in lines.splitlines() for medium in json.loads(line)["media"]}
        assert {*named, "questions.jsonl"} == set(files)
        with av.open(str(tmp_path / name / "video-0000.mp4")) as clip:
            pictures += [frame.to_ndarray(format="rgb24") for frame in clip.decode(video=0)]
        written.append((lines, [picture.tobytes() for picture in pictures]))
    assert written[0] == written[1]
    assert written[0] != written[2]
