"""The data checker: each fault has its sentence, which names the entry and the file, and nothing is trained."""

import copy

import pytest

from helpers.training_data import ENTRIES, QUESTIONS, turn, write_data
from training.data_files import read_entries
from training.finetune_lora import finetune, parse_args


def with_entry(index: int, **values) -> list[dict]:
    entries = copy.deepcopy(ENTRIES)
    entries[index] = {**entries[index], **values}
    return entries


def conversation(*messages: tuple[str, object]) -> dict:
    return {"conversations": [{"from": speaker, "value": value} for speaker, value in messages]}


NUMBER_3 = "data.json, entry 3 (id 3): "
FAULTS = {
    "a missing video": (
        with_entry(2, video="three.mp4"),
        NUMBER_3 + "The video FOLDER/three.mp4 does not exist.",
    ),
    "a missing image of an entry without id": (
        with_entry(3, image="three.png"),
        "data.json, entry 4: The image FOLDER/three.png does not exist.",
    ),
    "a path that is none": (
        with_entry(2, video=[7]),
        NUMBER_3 + "'video' has 7; it must be a path or a list of paths.",
    ),
    "no object": ([*ENTRIES, "clip.mp4"], "data.json, entry 5: It is 'clip.mp4'; it must be an object."),
    "no conversation": (
        with_entry(2, conversations=None),
        NUMBER_3 + "'conversations' is None; it must be a list of messages.",
    ),
    "no answer": (
        with_entry(2, **conversation(("human", "<video>\nWhat?"))),
        NUMBER_3 + "It ends with a question; every question needs an answer.",
    ),
    "a wrong speaker": (
        with_entry(2, **conversation(("human", "<video>\nWhat?"), ("assistant", "A dog."))),
        NUMBER_3 + "Message 2 is from 'assistant'; it must be from 'gpt'.",
    ),
    "the answer first": (
        with_entry(2, **conversation(("gpt", "A dog."), ("human", "<video>\nWhat?"))),
        NUMBER_3 + "Message 1 is from 'gpt'; it must be from 'human'.",
    ),
    "an empty answer": (
        with_entry(2, **conversation(("human", "<video>\nWhat?"), ("gpt", " "))),
        NUMBER_3 + "The value of message 2 is ' '; it must be a text.",
    ),
    "fewer media than placeholders": (
        with_entry(2, **conversation(("human", "<video><video>\nWhat?"), ("gpt", "A dog."))),
        NUMBER_3 + "Its messages have <video> 2 times, but 1 video is given.",
    ),
    "a medium without a placeholder": (
        with_entry(2, image="one.png"),
        NUMBER_3 + "Its messages have <image> 0 times, but 1 image is given.",
    ),
    "more media than placeholders": (
        with_entry(2, video=["one.mp4", "two.mp4"]),
        NUMBER_3 + "Its messages have <video> once, but 2 videos are given.",
    ),
    "a placeholder after text": (
        with_entry(2, **conversation(("human", "What?\n<video>"), ("gpt", "A dog."))),
        NUMBER_3 + "Message 1 has <image> or <video> after text; they belong at its start.",
    ),
    "a placeholder in an answer": (
        with_entry(2, **conversation(("human", "<video>\nWhat?"), ("gpt", "A <image>."))),
        NUMBER_3 + "Message 2 is an answer with <image> or <video> in it; only questions have media.",
    ),
    "no list": ({"id": 1}, "FOLDER/data.json has {'id': 1}; it must have a list of entries."),
}


@pytest.mark.parametrize(("entries", "sentence"), FAULTS.values(), ids=FAULTS)
def test_a_fault_has_its_sentence(tmp_path, entries, sentence):
    path = write_data(tmp_path, entries, real=False)
    good, faults = read_entries([path], tmp_path)
    assert faults == [sentence.replace("FOLDER", str(tmp_path))]
    assert len(good) == (0 if isinstance(entries, dict) else len(entries) - 1)


def test_files_that_cannot_be_read(tmp_path):
    path = write_data(tmp_path, real=False)
    (tmp_path / "broken.json").write_text("[{")
    good, faults = read_entries([tmp_path / "none.json", tmp_path / "broken.json", path], tmp_path)
    assert faults == [
        f"{tmp_path}/none.json cannot be read: No such file or directory.",
        f"{tmp_path}/broken.json is not a file of JSON.",
    ]
    assert len(good) == len(ENTRIES)


def test_all_faults_are_printed_and_nothing_is_trained(checkpoint, tmp_path, capsys):
    """Among them those that only decoding and tokenising show."""
    too_long = {"id": "long", **conversation(("human", "dog " * 4200), ("gpt", "Yes."))}
    path = write_data(tmp_path, [*with_entry(3, image="three.png"), too_long])
    (tmp_path / "two.mp4").write_bytes(b"not a video")
    (tmp_path / "one.png").write_bytes((tmp_path / "one.png").read_bytes()[:200])
    output = tmp_path / "output"
    words = f"--base {checkpoint} --data {path} --media-folder {tmp_path} --output {output} --device cpu"
    with pytest.raises(SystemExit, match=r"^The data have 4 faults; nothing was trained\.$"):
        finetune(parse_args(words.split()))
    printed = capsys.readouterr().err
    lines = [line for line in printed.splitlines() if line.startswith("data.json, ")]
    assert lines[0] == f"data.json, entry 4: The image {tmp_path}/three.png does not exist."
    assert lines[1] == f"data.json, entry 1 (id 'both'): {tmp_path}/one.png: The image is cut off."
    assert lines[2].startswith(f"data.json, entry 3 (id 3): {tmp_path}/two.mp4: The video ")
    assert lines[3].startswith("data.json, entry 5 (id 'long'): It has 4")
    assert lines[3].endswith(" tokens; the model takes 4096 at most.")
    assert not output.exists()


def test_data_can_be_checked_alone(checkpoint, tmp_path, capsys):
    path = write_data(tmp_path)
    words = f"--base {checkpoint} --data {path} --media-folder {tmp_path} --output {tmp_path / 'output'} --check-only"
    assert finetune(parse_args(words.split())) == []
    assert capsys.readouterr().out == "Nothing is wrong with the data, which have 4 entries.\n"
    assert not (tmp_path / "output").exists()


def test_an_entry_becomes_messages(tmp_path):
    (both, text, *_), faults = read_entries([write_data(tmp_path, real=False)], tmp_path)
    assert not faults
    assert both.media == (("video", tmp_path / "one.mp4"), ("image", tmp_path / "one.png"))
    question, answer, *_ = both.messages
    assert question["content"] == [{"type": "video"}, {"type": "image"}, {"type": "text", "text": QUESTIONS[0]}]
    assert answer == {"role": "assistant", "content": "It shows a ball, moving."}
    assert text.media == ()


def test_media_follow_their_placeholders(tmp_path):
    """In the order of the placeholders, over several questions."""
    entry = {
        "image": ["one.png"],
        "video": ["two.mp4", "one.mp4"],
        "conversations": [*turn("<image><video>What?", "A dog."), *turn("<video>\nAnd now?", "A ball.")],
    }
    (entry,), _ = read_entries([write_data(tmp_path, [entry], real=False)], tmp_path)
    assert [path.name for _, path in entry.media] == ["one.png", "two.mp4", "one.mp4"]
    assert entry.messages[2]["content"] == [{"type": "video"}, {"type": "text", "text": "And now?"}]
