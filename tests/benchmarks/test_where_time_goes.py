"""Where the time goes: the clock in the worker, what the stages leave of the wall time, and a small model measured."""

import pytest
import torch
from torch import nn

from benchmarks import encoder_clock, models, throughput, where_time_goes
from benchmarks.encoder_clock import LAYERS, PATCHES, PROJECTOR


class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList([nn.Identity(), nn.Identity()])

    def forward(self, frames):
        for layer in self.encoder.layers:
            frames = layer(frames)
        return frames


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.video_tower, self.multi_modal_projector = Tower(), nn.Identity()

    def forward(self, frames):
        return self.multi_modal_projector(self.video_tower(frames))


def test_the_clock_sums_up_batches(monkeypatch):
    ticks = iter([5, 5, 6, 8, 8.5, 12.5, 20, 20, 20.5, 30.5, 31, 33])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(encoder_clock.time, "perf_counter", lambda: next(ticks))
    model = Model()
    for _ in range(2):
        model(torch.zeros(1))
    encoder_clock.start(model)
    for _ in range(2):
        model(torch.zeros(1))
    seconds = {encoder_clock.BEGIN: 5, PATCHES: 1 + 0.5, LAYERS: 2 + 10, PROJECTOR: 4 + 2}
    assert encoder_clock.stop(model) == seconds
    model(torch.zeros(1))
    assert next(ticks, "none left") == "none left"


@pytest.mark.parametrize(
    ("wall", "other", "waits"),
    [
        (16, 16 - (2 + 1 + 8), 100 * (16 - 8) / 16),
        (10, 0, 100 * (10 - 8) / 10),
        (4, 0, 0),
    ],
    ids=["stages in turn", "stages overlap", "stages slower alone"],
)
def test_what_the_stages_leave(wall, other, waits):
    device = {PATCHES: 1, LAYERS: 2, PROJECTOR: 1, where_time_goes.PREFILL: 3, where_time_goes.TOKENS: 1}
    seconds = {where_time_goes.DECODE: 2, where_time_goes.PREPARE: 1, **device}
    seconds |= {where_time_goes.SENT: 3, where_time_goes.WALL: wall}
    assert where_time_goes.remainders(seconds) == pytest.approx((other, waits))


def test_every_stage_is_measured_in_each_case(monkeypatch, checkpoint):
    eager = {"dtype": "float32", "enforce_eager": True}
    monkeypatch.setattr(models, "write_original", lambda folder, size: checkpoint)
    monkeypatch.setitem(throughput.PLANS, "7B", throughput.Plan(1, 2, 8, (), (72, 1), eager))
    # Set here to be unset afterwards.
    monkeypatch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")
    monkeypatch.setattr(where_time_goes, "CASES", {"1 video": 1, "2 videos": 2})
    rows = list(where_time_goes.measure_size("7B", rounds=2))
    for case, rounds, missing in (("1 video", 6, set()), ("2 videos", 2, {where_time_goes.TRANSFER})):
        seconds = {row["metric"]: row["p50"] for row in rows if row["case"] == case}
        assert seconds.keys() == where_time_goes.PROCESSES.keys() - missing
        assert all(value > 0 for stage, value in seconds.items() if stage in where_time_goes.ON_DEVICE)
        assert {row["n"] for row in rows if row["case"] == case} == {1, rounds}
