"""What only a GPU can show of the kernels: no race, graphs, streams, offsets beyond 2**31, full sizes."""

import pytest
import torch
import torch.nn.functional as F
from triton import knobs

from helpers.tensors import MEAN, STD, TOLERANCE, embedding_weights, normal, random_frames
from vllm_videollava.kernels import reference
from vllm_videollava.kernels.add_norm import add_norm
from vllm_videollava.kernels.frame_patch_embed import frame_patch_embed
from vllm_videollava.kernels.temporal_attention import temporal_attention

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or knobs.runtime.interpret, reason="no GPU; it is about one"
)

OPTIONS = {"image_mean": MEAN, "image_std": STD, "eps": 1e-5}
ATTENTION = {"num_frames": 8, "num_heads": 16, "scale": 0.125}
TIMES = 200


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def full_size(random: torch.Generator, frames: int, dtype: torch.dtype):
    return random_frames(random, frames, 224, 224), embedding_weights(random, 1024, 257, dtype)


def expected_embedding(frames: torch.Tensor, weights) -> torch.Tensor:
    # On the CPU, since a GPU has no convolution of doubles that is exact enough to be a reference.
    return reference.frame_patch_embed(frames.cpu(), *(x.double().cpu() for x in weights), **OPTIONS).to(frames.device)


def assert_close(result: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = TOLERANCE[result.dtype]
    torch.testing.assert_close(result.double(), expected.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("frames", [1, 8, 17])
def test_frame_patch_embed_at_full_size(random, frames, dtype):
    pixels, weights = full_size(random, frames, dtype)
    assert_close(frame_patch_embed(pixels, *weights, **OPTIONS), expected_embedding(pixels, weights))


LAYOUTS = {
    "channels last": lambda frames: frames.contiguous(memory_format=torch.channels_last),
    "cut out of larger frames": lambda frames: F.pad(frames, (3, 5, 2, 1))[:, :, 2:-1, 3:-5],
    "mirrored": lambda frames: frames.transpose(2, 3).contiguous().transpose(2, 3),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("frames", [8, 17])
def test_every_memory_layout_at_full_size(random, frames, layout):
    pixels, weights = full_size(random, frames, torch.bfloat16)
    strided = LAYOUTS[layout](pixels)
    assert torch.equal(frame_patch_embed(strided, *weights, **OPTIONS), frame_patch_embed(pixels, *weights, **OPTIONS))


def test_frame_patch_embed_gives_the_same_each_time(random):
    pixels, weights = full_size(random, 24, torch.bfloat16)
    first = frame_patch_embed(pixels, *weights, **OPTIONS)
    assert all(torch.equal(frame_patch_embed(pixels, *weights, **OPTIONS), first) for _ in range(TIMES))


def attend(states: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
    residual, normed = add_norm(states, embedding, embedding[0, 0], embedding[0, 1], eps=1e-5)
    return residual + temporal_attention(normed, normed.flip(1), residual, **ATTENTION)


def test_temporal_kernels_give_the_same_each_time(random):
    states = normal(random, 24, 257, 1024, dtype=torch.bfloat16)
    embedding = normal(random, 1, 8, 1024, dtype=torch.bfloat16)
    first = attend(states, embedding)
    assert all(torch.equal(attend(states, embedding), first) for _ in range(TIMES))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("frames", [8, 24, 56])
def test_temporal_kernels_at_full_size(random, frames, dtype):
    projection = normal(random, frames, 257, 3072, dtype=dtype)
    parts = projection.chunk(3, -1)
    expected = reference.temporal_attention(*(x.double().cpu() for x in parts), **ATTENTION)
    assert_close(temporal_attention(*parts, **ATTENTION), expected.cuda())
    embedding = normal(random, 1, 8, 1024, dtype=dtype)
    norm = parts[0].contiguous(), embedding, embedding[0, 0], embedding[0, 1]
    for result, right in zip(
        add_norm(*norm, eps=1e-5),
        reference.add_norm(*(x.double() for x in norm), eps=1e-5),
        strict=True,
    ):
        assert_close(result, right)


def test_cuda_graph_reads_its_inputs_anew(random):
    pixels, weights = full_size(random, 8, torch.bfloat16)
    states, embedding = frame_patch_embed(pixels, *weights, **OPTIONS), normal(random, 1, 8, 1024, dtype=torch.bfloat16)
    attend(states, embedding)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = attend(frame_patch_embed(pixels, *weights, **OPTIONS), embedding)
    pixels.copy_(random_frames(random, 8, 224, 224))
    graph.replay()
    assert torch.equal(captured, attend(frame_patch_embed(pixels, *weights, **OPTIONS), embedding))


def test_another_stream_waits_for_nothing_of_the_first(random):
    pixels, weights = full_size(random, 8, torch.bfloat16)
    expected = frame_patch_embed(pixels, *weights, **OPTIONS)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result = frame_patch_embed(pixels, *weights, **OPTIONS)
    stream.synchronize()
    assert torch.equal(result, expected)


def test_more_than_two_to_the_31_elements(random):
    """8,200 frames of 257 x 1,024 features; the input is one frame, seen again and again."""
    pixels, weights = full_size(random, 1, torch.bfloat16)
    many = pixels.expand(8200, -1, -1, -1)
    result = frame_patch_embed(many, *weights, **OPTIONS)
    assert result.numel() > 2**31
    assert_close(result[:1], expected_embedding(pixels, weights))
    # cuBLAS may add up in another order at the edges of its tiles.
    for index in (4095, 8154, 8160, 8199):
        assert_close(result[index], result[0])
    embedding = normal(random, 1, 8, 1024, dtype=torch.bfloat16)
    over_time = attend(result, embedding)
    for start in (4096, 8152, 8192):
        again = attend(result[start : start + 8].clone(), embedding)
        assert torch.equal(over_time[start : start + 8], again)


def test_what_is_not_a_number_stays_in_its_clip(random):
    states = normal(random, 16, 257, 1024, dtype=torch.bfloat16)
    states[0, 5] = float("nan")
    attended = temporal_attention(states, states, states, **ATTENTION)
    assert attended[:8].isnan().any()
    assert not attended[8:].isnan().any()
