"""The benchmarks of the whole run on a CPU as they do on a GPU, with a model that is as small as can be."""

import pytest

from benchmarks import models, serving, throughput
from benchmarks.clips import NewClips

CLIP = (72, 1)


@pytest.fixture(autouse=True)
def small(monkeypatch, checkpoint):
    monkeypatch.setattr(models, "write_original", lambda folder, size: checkpoint)
    eager = {"dtype": "float32", "enforce_eager": True}
    monkeypatch.setitem(models.SIZES, "7B", models.SIZES["tiny"])
    monkeypatch.setitem(throughput.PLANS, "7B", throughput.Plan(1, 3, 8, (2,), CLIP, eager))
    flags = ("--dtype=float32", "--enforce-eager")
    monkeypatch.setitem(serving.LOADS, "7B", serving.Load((2,), (2.0,), 1, 2, 4, CLIP, flags))


MANY = ["many videos, 8 tokens each", "many videos, 1 to 15 tokens each"]


@pytest.mark.parametrize(
    ("way", "cases"),
    [
        (throughput.IN_GRAPHS, [throughput.NEW, throughput.AGAIN, *MANY]),
        (throughput.LLAMA, MANY),
        ("transformers, batches of 2", MANY),
    ],
)
def test_a_way_is_measured_in_each_case(way, cases):
    rows = list(throughput.measure_size("7B", [way], rounds=1))
    assert [(row["way"], row["case"]) for row in rows] == [(way, case) for case in cases]


def test_ways_with_the_same_weights_take_turns(monkeypatch):
    eager = {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 8}
    monkeypatch.setitem(throughput.PLANS, "tiny", throughput.Plan(1, 2, 8, (1, 2), CLIP, eager))
    rows = list(throughput.measure_size("tiny", ["this package", "transformers"], rounds=1))
    ways = [throughput.OURS, throughput.ONE_BY_ONE, "transformers, batches of 2"]
    assert [row["way"] for row in rows] == ways[:2] + ways[:1] + ways * 2


class Fixed:
    many = 2
    takes_single = False

    def __init__(self, *answers):
        self.answers = [[answer] for answer in answers]

    def answer(self, *_):
        return self.answers


@pytest.mark.parametrize(
    ("ways", "sentence"),
    [
        ({"a": Fixed(1, 2), "b": Fixed(1, 3)}, "The answers differ"),
        ({"a": Fixed(1, 1), "b": Fixed(1, 1)}, "Two videos get the same answer"),
    ],
    ids=["ways differ", "videos are ignored"],
)
def test_wrong_answers_are_not_measured(tmp_path, ways, sentence):
    with pytest.raises(ValueError, match=sentence):
        throughput.check_answers(ways, NewClips(tmp_path, *CLIP), 1)


def test_a_way_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="must be how one of these begins: this package, encoder graphs, LLaMA alone"):
        next(throughput.measure_size("7B", ["llama"], rounds=1))


def test_answers_of_mixed_length_have_the_right_mean():
    lengths = throughput.mixed_lengths(64, 128)
    assert (min(lengths), max(lengths), sum(lengths)) == (16, 240, 64 * 128)


def test_a_server_is_measured_in_each_case(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["serving", "--output", str(tmp_path)])
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.utilization", lambda: 50)
    monkeypatch.setattr("benchmarks.harness.PROVENANCE", {})
    # It would set variables for the tests that follow.
    monkeypatch.setattr("benchmarks.harness.use_all_cores", lambda: None)
    serving.main()
    text = (tmp_path / "serving_7B.jsonl").read_text()
    for case in ("new videos, 2 clients", "new images, 2 clients", "one video, 2 clients", "new videos, 2 a second"):
        assert f'"case": "{case}", "way": "this package", "metric": "GPU busy"' in text
