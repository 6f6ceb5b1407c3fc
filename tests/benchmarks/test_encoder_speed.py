"""The benchmark of the encoders runs on a CPU, with a tape in place of CUDA graphs."""

import pytest
import torch

from benchmarks.encoder_speed import EAGER, GRAPHS, compare, redraw_weights
from helpers.loading import engine_config, model_loading
from helpers.tape import record_tapes


@pytest.fixture
def loaded(checkpoint, tmp_path, monkeypatch):
    record_tapes(monkeypatch)
    with model_loading(tmp_path / "rendezvous") as load, torch.inference_mode():
        yield load(checkpoint), engine_config(checkpoint, max_num_batched_tokens=512, max_num_seqs=8)


@pytest.mark.parametrize(("modality", "count", "case"), [("video", 3, "3 videos"), ("image", 1, "1 image")])
def test_a_case_is_checked_and_timed(loaded, modality, count, case):
    redraw_weights(loaded[0])
    distance, *times = compare(*loaded, modality, count, rounds=2)
    assert (distance["case"], distance["metric"]) == (case, "relative distance")
    assert distance["p50"] < 1e-5
    assert [(row["case"], row["way"], row["metric"]) for row in times] == [
        (case, EAGER, "time"),
        (case, GRAPHS, "time"),
    ]


def test_weights_that_ignore_pixels_are_refused(loaded):
    loaded[0].video_tower.pre_layrnorm.weight.zero_()
    with pytest.raises(ValueError, match="other pixels give almost the same"):
        next(compare(*loaded, "video", 1, rounds=2))
