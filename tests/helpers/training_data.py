"""Training data in the original's format, with media made from numbers."""

import json
from pathlib import Path

from helpers.asking import clip, picture

QUESTIONS = ("What does the clip show?", "And the image?", "What is a dog?", "What looks?")
ANSWERS = ("It shows a ball, moving.", "It shows a street.", "A dog opens the kitchen, slowly.", "The person.")


def turn(question: str, answer: str) -> list[dict]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


ENTRIES = [
    {
        "id": "both",
        "video": "one.mp4",
        "image": ["one.png"],
        "conversations": [
            *turn(f"<video><image>\n{QUESTIONS[0]}", ANSWERS[0]),
            *turn(QUESTIONS[1], ANSWERS[1]),
        ],
    },
    {"id": "text", "conversations": turn(QUESTIONS[2], ANSWERS[2])},
    {"id": 3, "video": "two.mp4", "conversations": turn(f"<video>\n{QUESTIONS[3]}", ANSWERS[3])},
    {"image": "one.png", "conversations": turn(f"<image> {QUESTIONS[3]}", ANSWERS[1])},
]


def write_data(folder: Path, entries: object = ENTRIES, real: bool = True) -> Path:
    """Write data.json and media to a folder, and return the path of data.json; media that are not real are empty."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(("one.mp4", "two.mp4"), 1):
        (folder / name).write_bytes(clip(number) if real else b"")
    (folder / "one.png").touch()
    if real:
        picture(3).save(folder / "one.png")
    path = folder / "data.json"
    path.write_text(json.dumps(entries))
    return path
