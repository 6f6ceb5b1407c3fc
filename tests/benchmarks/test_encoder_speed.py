"""The benchmark of the encoders runs on a CPU, with a tape in place of CUDA graphs."""

import torch

from benchmarks.encoder_speed import EAGER, GRAPHS, compare
from helpers.loading import engine_config, model_loading
from helpers.tape import record_tapes


@torch.inference_mode()
def test_every_case_is_checked_and_timed(checkpoint, tmp_path, monkeypatch):
    record_tapes(monkeypatch)
    with model_loading(tmp_path / "rendezvous") as load:
        config = engine_config(checkpoint, max_num_batched_tokens=512, max_num_seqs=8)
        rows = list(compare(load(checkpoint), config, {"video": (1, 3), "image": (1,)}, rounds=2))
    assert [(row["case"], row["way"]) for row in rows if row["metric"] == "time"] == [
        (case, way) for case in ("1 video", "3 videos", "1 image") for way in (EAGER, GRAPHS)
    ]
    assert all(row["p50"] < 1e-5 for row in rows if row["metric"] == "relative distance")
