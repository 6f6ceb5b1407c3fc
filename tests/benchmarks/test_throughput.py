"""The benchmarks of the whole run on a CPU as they do on a GPU, with a model that is as small as can be."""

import pytest

from benchmarks import models, serving, throughput

CLIP = (72, 1)


@pytest.fixture(autouse=True)
def small(monkeypatch, checkpoint):
    monkeypatch.setattr(models, "write_original", lambda folder, size: checkpoint)
    eager = {"dtype": "float32", "enforce_eager": True}
    monkeypatch.setitem(models.SIZES, "7B", models.SIZES["tiny"])
    monkeypatch.setitem(throughput.PLANS, "7B", throughput.Plan(1, 3, 8, (2,), CLIP, eager))
    flags = ("--dtype=float32", "--enforce-eager")
    monkeypatch.setitem(serving.LOADS, "7B", serving.Load((2,), (2.0,), 1, 2, 4, CLIP, flags))


@pytest.mark.parametrize("way", [throughput.IN_GRAPHS, "transformers, batches of 2"])
def test_a_way_is_measured_in_each_case(way):
    rows = list(throughput.measure_size("7B", [way], rounds=1))
    cases = [throughput.NEW, throughput.AGAIN, "many videos, 8 tokens each", "many videos, 1 to 15 tokens each"]
    assert [(row["way"], row["case"]) for row in rows] == [(way, case) for case in cases]


def test_answers_of_mixed_length_have_the_right_mean():
    lengths = throughput.mixed_lengths(64, 128)
    assert (min(lengths), max(lengths), sum(lengths)) == (16, 240, 64 * 128)


def test_a_server_is_measured_in_each_case(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["serving", "--output", str(tmp_path)])
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.utilization", lambda: 50)
    monkeypatch.setattr("benchmarks.harness.PROVENANCE", {})
    serving.main()
    text = (tmp_path / "serving_7B.jsonl").read_text()
    cases = [
        f"{what}, {who}" for who in ("2 clients", "1 client") for what in ("new videos", "new images", "one video")
    ]
    for case in [*cases, "new videos, 2 a second"]:
        assert f'"case": "{case}", "way": "this package", "metric": "GPU busy"' in text
