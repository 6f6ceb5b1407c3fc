"""The towers in CUDA graphs: vLLM's manager returns the same embeddings with graphs as without.

There is no GPU; see helpers/tape.py.
"""

import pytest
import torch
from vllm.v1.worker import encoder_cudagraph
from vllm.v1.worker.encoder_cudagraph import EncoderCudaGraphManager

from helpers.loading import engine_config, model_loading
from helpers.tape import record_tapes

# Of the random checkpoint.
TOKENS = {"image": 16, "video": 136}


@pytest.fixture(scope="module")
def model(checkpoint, tmp_path_factory):
    with model_loading(tmp_path_factory.mktemp("rendezvous") / "file") as load:
        yield load(checkpoint)


@pytest.fixture
def make_manager(checkpoint, model, monkeypatch):
    record_tapes(monkeypatch)

    def make_manager(**options) -> EncoderCudaGraphManager:
        config = engine_config(checkpoint, **options)
        manager = EncoderCudaGraphManager(config, torch.device("cpu"), torch.float32, model)
        manager.capture(graph_pool=object())
        return manager

    return make_manager


def random_pixels(modality: str, count: int) -> dict[str, torch.Tensor]:
    shape = (3, 56, 56) if modality == "image" else (8, 3, 56, 56)
    generator = torch.Generator().manual_seed(count)
    pixels = torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)
    return {f"pixel_values_{modality}s": pixels}


@torch.inference_mode()
def test_graphs_give_what_is_computed_without(model, make_manager):
    manager = make_manager(max_num_batched_tokens=512, max_num_seqs=8)
    assert manager.path_token_budgets == {
        "image": [0, 16, 32, 64, 128, 256, 512],
        "video": [0, 136, 272, 512],
    }
    for modality, count in [(name, count) for count in (1, 2, 3, 5, 40) for name in ("video", "image")]:
        inputs = random_pixels(modality, count)
        assert manager.supports_modality(modality)
        embeddings = manager.execute(inputs)
        expected = model.embed_multimodal(**inputs)
        assert [embedding.shape for embedding in embeddings] == [(TOKENS[modality], 128)] * count
        torch.testing.assert_close(list(embeddings), list(expected), atol=1e-5, rtol=1e-5)
    assert manager.graph_misses == 0


@torch.inference_mode()
def test_a_graph_has_the_pixels_of_its_own_call_only(make_manager):
    manager = make_manager(max_num_batched_tokens=512, max_num_seqs=8)
    three, one = random_pixels("video", 3), random_pixels("video", 1)
    first, _, _ = manager.execute(three)
    (alone,) = manager.execute(one)
    again, _, _ = manager.execute(three)
    assert not torch.equal(first, alone)
    assert torch.equal(first, again)


@torch.inference_mode()
@pytest.mark.parametrize("count", [1, 2, 3])
def test_graphs_of_two_ranks_share_out_videos(model, make_manager, monkeypatch, count):
    """Both ranks run here, one after the other; with one video, the second has none."""
    managers = [make_manager(max_num_batched_tokens=512, max_num_seqs=8) for _ in range(2)]
    inputs, sent = random_pixels("video", count), []
    monkeypatch.setattr(encoder_cudagraph, "get_tensor_model_parallel_world_size", lambda: 2)

    def run_rank(rank: int, gather) -> list[torch.Tensor]:
        managers[rank].use_dp = True
        monkeypatch.setattr(encoder_cudagraph, "get_tensor_model_parallel_rank", lambda: rank)
        monkeypatch.setattr(encoder_cudagraph, "tensor_model_parallel_all_gather", gather)
        return managers[rank].execute(inputs)

    def keep(embeddings: torch.Tensor, dim: int) -> torch.Tensor:
        sent.append(embeddings)
        return torch.cat([embeddings, embeddings])

    run_rank(1, keep)
    embeddings = run_rank(0, lambda own, dim: torch.cat([own, sent[0]]))
    torch.testing.assert_close(embeddings, list(model.embed_multimodal(**inputs)), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_a_video_may_have_more_tokens_than_the_schedulers_batch(model, make_manager):
    manager = make_manager(max_num_batched_tokens=64, max_num_seqs=8)
    assert manager.path_token_budgets["video"] == [0, 136]
    inputs = random_pixels("video", 2)
    torch.testing.assert_close(manager.execute(inputs), list(model.embed_multimodal(**inputs)), atol=1e-5, rtol=1e-5)


def test_only_towers_that_are_there_are_captured(checkpoint, tmp_path):
    with model_loading(tmp_path / "rendezvous") as load:
        model = load(checkpoint, limit_mm_per_prompt={"video": 0})
    config = model.get_encoder_cudagraph_config()
    assert config.modalities == ["image"]
    assert list(config.paths) == ["image"]
    assert model.get_encoder_cudagraph_budget_range(engine_config(checkpoint))[0] == TOKENS["image"]
