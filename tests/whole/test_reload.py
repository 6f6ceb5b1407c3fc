"""A checkpoint's weights that come again fill the model, those of towers elsewhere included."""

import pytest

from helpers.asking import ask, clip, picture
from helpers.checkpoints import copy_checkpoint
from helpers.fine_tunes import write_lora
from helpers.original_answer import STEPS, assert_same, pixels_of, reference_answer
from helpers.sources import move_towers_away

MEDIA = [clip(1), picture(2)]
QUESTION = "What does the video show?"


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory):
    """A checkpoint whose towers lie in their own folders."""
    folder = copy_checkpoint(checkpoint, tmp_path_factory.mktemp("reload") / "checkpoint")
    move_towers_away(folder)
    return folder


@pytest.fixture(scope="module")
def llm(folder):
    from vllm import LLM

    llm = LLM(str(folder), dtype="float32", enforce_eager=True, max_model_len=1024)
    yield llm
    llm.llm_engine.engine_core.shutdown()


def reload(llm, path) -> None:
    llm.collective_rpc("reload_weights", kwargs={"weights_path": str(path)})
    llm.reset_prefix_cache()
    # The workers have just emptied theirs.
    llm.llm_engine.reset_encoder_cache()


def assert_answers_as(llm, checkpoint) -> None:
    reference = reference_answer(checkpoint, [pixels_of(medium) for medium in MEDIA], QUESTION)
    assert_same(ask(llm, MEDIA, QUESTION, STEPS), reference)


@pytest.mark.feature("Engine", "weights that come again", how="`reload_weights`, compared with the original")
def test_a_checkpoint_and_its_towers_come_again(llm, folder, checkpoint, tmp_path):
    assert_answers_as(llm, checkpoint)
    other = write_lora(tmp_path, checkpoint).whole
    reload(llm, other)
    assert_answers_as(llm, other)
    reload(llm, folder)
    assert_answers_as(llm, checkpoint)


def test_a_fine_tune_comes_on_its_own_base(llm, folder, checkpoint, tmp_path):
    base = write_lora(tmp_path / "base", checkpoint, seed=1).whole
    tuned = write_lora(tmp_path / "tuned", base, seed=2)
    answers = []
    for path in (tuned.whole, folder, tuned.folder):
        reload(llm, path)
        answers.append(ask(llm, MEDIA, QUESTION, STEPS))
    merged, before, loaded = answers
    assert loaded[0] == merged[0] != before[0]
    assert loaded[1] == pytest.approx(merged[1], abs=1e-4)
