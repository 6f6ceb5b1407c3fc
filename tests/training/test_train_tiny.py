"""Training: its model is the original's, an interrupted run ends as one that was not, and samples stay true."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from helpers.asking import SYSTEM
from helpers.directions import DIRECTIONS
from original.model import PLACEHOLDER, OriginalVideoLlava
from training import dataset, train_tiny
from training.conversation import attention_bias, pack
from vllm_videollava.tiny.questions import Question
from vllm_videollava.tiny.world import COLOURS

QUESTIONS = [Question("a", "What is there?", "A red circle."), Question("b", "Does the square move?", "It stays.")]


@pytest.fixture
def short(monkeypatch):
    """Training that takes seconds and saves its state at every step."""
    monkeypatch.setattr(train_tiny, "NUM_IMAGES", 20)
    monkeypatch.setattr(train_tiny, "NUM_VIDEOS", 12)
    monkeypatch.setattr(train_tiny, "SAVE_SECONDS", 0)
    stages = {name: stage._replace(steps=3, batch=2) for name, stage in train_tiny.STAGES.items()}
    monkeypatch.setattr(train_tiny, "STAGES", stages)


def start(work: Path) -> train_tiny.Trainer:
    return train_tiny.Trainer(work, workers=1, device=torch.device("cpu"))


def test_an_interrupted_run_ends_as_one_that_was_not(short, tmp_path, monkeypatch):
    whole = start(tmp_path)
    whole.run()
    (tmp_path / "state.pt").unlink()
    save = train_tiny.Trainer._save
    # In each of the three stages, which save four times each.
    for number in (2, 3, 4):
        saved = []

        def save_and_stop(self, *args, saved=saved, number=number):
            save(self, *args)
            saved.append(args)
            if len(saved) == number:
                raise KeyboardInterrupt

        monkeypatch.setattr(train_tiny.Trainer, "_save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path).run()
    monkeypatch.setattr(train_tiny.Trainer, "_save", save)
    resumed = start(tmp_path)
    resumed.run()
    assert resumed.finished == ["images", "videos", "answers"]
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], tensor, msg=name)


@pytest.mark.parametrize("media", [("video",), ("image",), ("video", "image")], ids="+".join)
def test_the_model_is_the_originals(short, tmp_path, media):
    """Of two questions packed behind the same media, the second is answered as if it were alone."""
    trainer = start(tmp_path)
    trainer.write_checkpoint(tmp_path / "checkpoint")
    trainer.model.load_state_dict(load_file(tmp_path / "checkpoint" / "model.safetensors"))
    pixels = [trainer.pools[medium].draw(np.random.default_rng(0)).pixels for medium in media]
    frames = [torch.from_numpy(part.copy()).movedim(-1, 1) for part in pixels]

    towers = {"video": trainer.model.video_tower, "image": trainer.model.image_tower}
    features = [
        trainer.model.project(towers[m](part)[-1], m).flatten(0, 1) for m, part in zip(media, frames, strict=True)
    ]
    ids, _, positions, groups = pack([QUESTIONS], trainer.tokenizer)
    embeddings = torch.cat([trainer.embed(trainer.prefix), *features, trainer.embed(ids[0])])[None]
    num_prefix = embeddings.shape[1] - ids.shape[1]
    positions = torch.cat([torch.arange(num_prefix)[None], num_prefix + positions], dim=1)
    hidden = trainer.model.answer(embeddings, positions, attention_bias(groups, num_prefix).float())
    prompt = trainer.tokenizer.encode(f"\n{QUESTIONS[1].text} ASSISTANT:")
    end = int((groups[0] == 1).nonzero()[0]) + len(prompt) - 1
    distribution = trainer.model.lm_head(hidden[0, num_prefix + end]).log_softmax(-1)

    original = OriginalVideoLlava.from_folder(tmp_path / "checkpoint")
    before = [1, *trainer.tokenizer.encode(f"{SYSTEM} USER: ")]
    shown = [part.float() if len(part) > 1 else part[0].float() for part in frames]
    (token,), (logprob,) = original.generate([*before, *[PLACEHOLDER] * len(media), *prompt], shown, 1)
    assert token == distribution.argmax()
    assert logprob == pytest.approx(distribution.max().item(), abs=1e-4)


def test_work_that_other_code_began_is_refused(short, tmp_path):
    start(tmp_path)
    start(tmp_path)
    (tmp_path / "code.sha256").write_text("of another time")
    with pytest.raises(
        SystemExit, match="was started by a different version of the code; delete it or choose another folder"
    ):
        start(tmp_path)


def test_the_tokenizers_sentences_are_right_answers():
    compared = [question.answer for question in train_tiny._all_questions() if question.kind == "same colour"]
    assert len(compared) > 300
    assert set(compared) == {
        f"Yes, both are {one}." if one == other else f"No, the video shows {one} and the image shows {other}."
        for one in COLOURS
        for other in COLOURS
    }


@pytest.mark.parametrize("turn", [dataset.mirrored, dataset.reversed_in_time])
def test_a_sample_turned_around_is_true(turn):
    """Where its scene says that objects are, there they are, in the colour and on the way that it says."""
    events = set()
    for seed in range(30):
        turned = turn(dataset.random_sample(seed, medium="video", size=98, grid=7))
        owners = [dataset._owners(turned.scene, time, 7) for time in turned.times]
        assert (np.stack(owners) == turned.owners).mean() > 0.995
        assert (turned.times[0], turned.times[-1]) == (0, 1)
        for thing in turned.scene.things:
            events.add(thing.behaviour)
            if thing.moves:
                assert np.dot(np.subtract(thing.end, thing.start), DIRECTIONS[thing.behaviour]) > 0.2
            for time, frame in zip(turned.times, turned.pixels, strict=True):
                column, row = np.rint((np.array(thing.centre(time)) + 0.5) * 98).astype(int)
                if thing.is_visible(time) and min(row, column) > 4 and max(row, column) < 93:
                    seen = np.median(frame[row - 1 : row + 2, column - 1 : column + 2], axis=(0, 1))
                    expected = thing.new_rgb if thing.has_changed(time) else thing.rgb
                    assert np.abs(seen - expected).max() < 50
    assert events == {*DIRECTIONS, "stays", "appears", "vanishes", "changes"}
