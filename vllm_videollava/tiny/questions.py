"""Asks questions about scenes, in several wordings, with their right answers."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from vllm_videollava.tiny.world import EVENTS, SHAPES, Scene, Thing

# The wordings, by kind. {medium} is "video" or "image"; {shape} is the shape of the object in question.
WORDINGS = {
    "shape": (
        "What shape is in the {medium}?",
        "Which shape does the {medium} show?",
        "What is the shape of the object in the {medium}?",
    ),
    "colour": (
        "What colour is the {shape}?",
        "What color is the {shape}?",
        "Which colour does the {shape} have?",
        "Tell me the colour of the {shape}.",
    ),
    "colour of the object": (
        "What colour is the object in the {medium}?",
        "Which colour does the object in the {medium} have?",
    ),
    "count": (
        "How many objects are there?",
        "How many objects are in the {medium}?",
        "How many shapes do you see?",
        "Count the objects.",
    ),
    "direction": (
        "Which way does the {shape} move?",
        "In which direction does the {shape} move?",
        "Where does the {shape} go?",
    ),
    "motion": (
        "Does the {shape} move or stay?",
        "Does the {shape} move or does it stay?",
        "Is the {shape} moving or still?",
    ),
    "order": ("What happens first?", "What happens first in the {medium}?", "Which comes first?"),
    "contents": (
        "What is in the {medium}?",
        "What does the {medium} show?",
        "What do you see?",
        "What can you see in the {medium}?",
    ),
    "description": (
        "Describe the {medium}.",
        "Describe the {medium} in one sentence.",
        "What happens in the {medium}?",
    ),
    "same colour": (
        "Are the two the same colour?",
        "Do the video and the image show the same colour?",
        "Is the object in the image the same colour as the one in the video?",
    ),
}


class Question(NamedTuple):
    """A question and its right answer."""

    kind: str
    text: str
    answer: str


def questions_about(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Return every question that a scene answers, each in a random wording of its kind."""
    things = sorted(scene.things, key=lambda thing: SHAPES.index(thing.shape))
    asked = [("count", "", f"There {'is one object' if len(things) == 1 else 'are two objects'}.")]
    if len(things) == 1:
        asked += _about_the_only_one(things[0])
    asked.append(("contents", "", f"{_capital(_join(_with_article(thing) for thing in things))}."))
    for thing in things:
        asked.append(("colour", thing.shape, _colour_answer(thing)))
        if scene.medium == "video" and thing.behaviour not in EVENTS:
            asked.append(("motion", thing.shape, f"The {thing.shape} {'moves' if thing.moves else 'stays'}."))
        if thing.moves:
            asked.append(("direction", thing.shape, f"The {thing.shape} moves {thing.behaviour}."))
    if scene.medium == "video":
        asked.append(("description", "", f"{_capital(_join(_clause(thing) for thing in things))}."))
        if len(things) == 2 and all(thing.behaviour in EVENTS for thing in things):
            first = min(things, key=lambda thing: thing.event_time)
            asked.append(("order", "", f"The {first.shape} {_event(first)} first."))
    return [_word(kind, rng, scene.medium, shape, answer) for kind, shape, answer in asked]


def only_colour(scene: Scene) -> str | None:
    """Return the colour of a scene's only object, or None if there are two objects or the object changes colour."""
    first, *others = scene.things
    return None if others or first.behaviour == "changes" else first.colour


def questions_about_both(video: Scene, image: Scene, rng: np.random.Generator) -> list[Question]:
    """Return the questions about a clip and an image in one message.

    Args:
        video, image: scenes that have an `only_colour`.

    Raises:
        ValueError: one of them has no `only_colour`.
    """
    one, other = only_colour(video), only_colour(image)
    if None in (one, other):
        raise ValueError("Only a clip and an image with one object each, which keeps its colour, can be compared.")
    answer = f"Yes, both are {one}." if one == other else f"No, the video shows {one} and the image shows {other}."
    questions = [_word("same colour", rng, "", "", answer)]
    for scene in (video, image):
        questions += [
            _word(kind, rng, scene.medium, shape, answer)
            for kind, shape, answer in _about_the_only_one(scene.things[0])
        ]
    return questions


def _about_the_only_one(thing: Thing) -> list[tuple[str, str, str]]:
    return [
        ("shape", "", f"It is a {thing.shape}."),
        ("colour of the object", "", _colour_answer(thing)),
    ]


def _word(kind: str, rng: np.random.Generator, medium: str, shape: str, answer: str) -> Question:
    wordings = WORDINGS[kind]
    return Question(kind, wordings[rng.integers(len(wordings))].format(medium=medium, shape=shape), answer)


def _colour_answer(thing: Thing) -> str:
    at_first = " at first" if thing.behaviour == "changes" else ""
    return f"The {thing.shape} is {thing.colour}{at_first}."


def _clause(thing: Thing) -> str:
    if thing.behaviour == "changes":
        return f"a {thing.shape} changes from {thing.colour} to {thing.new_colour}"
    verb = f"moves {thing.behaviour}" if thing.moves else thing.behaviour
    return f"{_with_article(thing)} {verb}"


def _event(thing: Thing) -> str:
    return "changes colour" if thing.behaviour == "changes" else thing.behaviour


def _with_article(thing: Thing) -> str:
    return f"{'an' if thing.colour == 'orange' else 'a'} {thing.colour} {thing.shape}"


def _join(parts: Iterable[str]) -> str:
    return " and ".join(parts)


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]
