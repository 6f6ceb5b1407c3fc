"""The kernels compute what plain PyTorch computes: on a GPU if there is one, else under Triton's interpreter.

TRITON_INTERPRET=1 python -m pytest tests/kernels
"""

import itertools

import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from triton import knobs

from helpers.tensors import (
    DEVICE,
    MEAN,
    RUNS_KERNELS,
    STD,
    TOLERANCE,
    assert_close,
    embedding_weights,
    normal,
    random_frames,
)
from vllm_videollava.kernels import dispatch, reference
from vllm_videollava.kernels.add_norm import add_norm
from vllm_videollava.kernels.frame_patch_embed import frame_patch_embed
from vllm_videollava.kernels.temporal_attention import temporal_attention

pytestmark = RUNS_KERNELS
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch."))


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Memory that is allocated and not filled is NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def check_embedding(frames: torch.Tensor, weights: tuple[torch.Tensor, ...], dtype: torch.dtype) -> None:
    options = {"image_mean": MEAN, "image_std": STD, "eps": 1e-5}
    result = frame_patch_embed(frames, *weights, **options)
    assert_close(result, reference.frame_patch_embed(frames, *(x.double() for x in weights), **options), dtype)


@DTYPES
@pytest.mark.parametrize(
    ("frames", "size", "features"),
    [(1, 28, 64), (3, 28, 96), (8, 28, 1024), (17, 28, 64), (1, 56, 1024), (17, 56, 96), (3, 224, 64), (1, 336, 96)],
)
def test_frame_patch_embed(random, frames, size, features, dtype):
    weights = embedding_weights(random, features, 1 + (size // 14) ** 2, dtype)
    check_embedding(random_frames(random, frames, size, size), weights, dtype)


@pytest.mark.parametrize(
    ("height", "width", "patch"), [(28, 70, 14), (42, 14, 14), (32, 64, 16), (16, 24, 8), (64, 32, 32)]
)
def test_frame_patch_embed_of_other_patches(random, height, width, patch):
    positions = 1 + height // patch * (width // patch)
    weights = embedding_weights(random, 64, positions, torch.float32, patch)
    check_embedding(random_frames(random, 2, height, width), weights, torch.float32)


LAYOUTS = {
    "channels last": lambda frames: frames.contiguous(memory_format=torch.channels_last),
    "every second frame": lambda frames: frames.repeat_interleave(2, 0)[::2],
    "cut out of larger frames": lambda frames: F.pad(frames, (3, 5, 2, 1))[:, :, 2:-1, 3:-5],
    "mirrored": lambda frames: frames.transpose(2, 3).contiguous().transpose(2, 3),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_frame_patch_embed_of_any_memory_layout(random, layout):
    frames = LAYOUTS[layout](random_frames(random, 3, 28, 28))
    assert not frames.is_contiguous()
    check_embedding(frames, embedding_weights(random, 64, 5, torch.float32), torch.float32)


def test_frame_patch_embed_of_strided_weights(random):
    weight, *others = embedding_weights(random, 64, 5, torch.float32)
    strided = weight.contiguous(memory_format=torch.channels_last), others[0].repeat_interleave(2)[::2], *others[1:]
    check_embedding(random_frames(random, 2, 28, 28), strided, torch.float32)


def test_frame_patch_embed_of_rows_with_a_large_mean(random):
    """The variance survives a mean a hundred times the deviation."""
    weight, class_embedding, positions, *norm = embedding_weights(random, 300, 5, torch.float32)
    options = {"image_mean": MEAN, "image_std": STD, "eps": 1e-5}
    inputs = random_frames(random, 2, 28, 28), weight, class_embedding, positions + 100, *norm
    expected = reference.frame_patch_embed(inputs[0], *(x.double() for x in inputs[1:]), **options)
    torch.testing.assert_close(frame_patch_embed(*inputs, **options).double(), expected, rtol=1e-3, atol=1e-3)


@DTYPES
@pytest.mark.parametrize(
    ("clips", "frames", "positions", "features"),
    [(1, 2, 5, 64), (2, 8, 17, 96), (1, 8, 31, 64), (3, 3, 1, 1024), (1, 16, 5, 1000)],
)
def test_add_norm_of_the_temporal_embedding(random, clips, frames, positions, features, dtype):
    inputs = (
        normal(random, clips * frames, positions, features, dtype=dtype, mean=2),
        normal(random, 1, frames, features, dtype=dtype),
        normal(random, features, dtype=dtype, scale=0.1, mean=1),
        normal(random, features, dtype=dtype, scale=0.1),
    )
    residual, normed = add_norm(*inputs, eps=1e-5)
    expected = reference.add_norm(*(x.double() for x in inputs), eps=1e-5)
    assert_close(residual, expected[0], dtype)
    assert_close(normed, expected[1], dtype)


@DTYPES
@pytest.mark.parametrize(("frames", "positions", "features"), [(1, 1, 64), (3, 17, 96), (8, 5, 1024), (2, 3, 1000)])
def test_add_norm_of_a_layers_output(random, frames, positions, features, dtype):
    inputs = (
        normal(random, frames, positions, features, dtype=dtype, mean=2),
        normal(random, positions, frames, features, dtype=dtype).transpose(0, 1),
        normal(random, features, dtype=dtype, scale=0.1, mean=1),
        normal(random, features, dtype=dtype, scale=0.1),
    )
    total, normed = add_norm(*inputs, eps=1e-5)
    sum_ = inputs[0].double() + inputs[1].double()
    assert_close(total, sum_, dtype)
    assert_close(normed, F.layer_norm(sum_, (features,), inputs[2].double(), inputs[3].double(), 1e-5), dtype)


def check_attention(query, key, value, dtype, **options):
    expected = reference.temporal_attention(query.double(), key.double(), value.double(), **options)
    assert_close(temporal_attention(query, key, value, **options), expected, dtype)


@DTYPES
@pytest.mark.parametrize("head_size", [16, 64])
@pytest.mark.parametrize("frames", [2, 3, 8, 16])
def test_temporal_attention(random, frames, head_size, dtype):
    heads = 3
    projection = normal(random, 2 * frames, 7, 3 * heads * head_size, dtype=dtype)
    parts = projection.chunk(3, -1)
    check_attention(*parts, dtype, num_frames=frames, num_heads=heads, scale=head_size**-0.5)


@pytest.mark.parametrize(
    ("clips", "frames", "positions", "heads", "head_size"),
    [(1, 1, 3, 1, 16), (1, 8, 257, 2, 16), (3, 5, 2, 2, 80), (1, 40, 3, 1, 32), (2, 8, 1, 4, 8)],
)
def test_temporal_attention_of_other_shapes(random, clips, frames, positions, heads, head_size):
    states = [normal(random, clips * frames, positions, heads * head_size, dtype=torch.float32) for _ in range(3)]
    check_attention(*states, torch.float32, num_frames=frames, num_heads=heads, scale=head_size**-0.5)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_temporal_attention_of_any_memory_layout(random, order):
    states = []
    for _ in range(3):
        contiguous = normal(random, *((16, 5, 32)[axis] for axis in order), dtype=torch.float32)
        states.append(contiguous.permute(*(order.index(axis) for axis in range(3))))
    check_attention(*states, torch.float32, num_frames=8, num_heads=2, scale=0.25)


def test_temporal_attention_of_large_scores(random):
    states = [normal(random, 8, 3, 32, dtype=torch.float32, scale=30) for _ in range(3)]
    expected = reference.temporal_attention(*(x.double() for x in states), num_frames=8, num_heads=2, scale=0.25)
    result = temporal_attention(*states, num_frames=8, num_heads=2, scale=0.25)
    torch.testing.assert_close(result.double(), expected, rtol=1e-3, atol=1e-3)


def embed_again(frames, *others):
    return frame_patch_embed(frames, *others, image_mean=MEAN, image_std=STD, eps=1e-5) + 1


def attend_again(states):
    residual, normed = add_norm(states, states[:8, 0][None], states[0, 0], states[0, 1], eps=1e-5)
    return residual + temporal_attention(normed, normed, normed, num_frames=8, num_heads=2, scale=0.25)


@pytest.mark.parametrize("name", ["embed", "attend"])
def test_torch_compile_takes_the_operators_without_a_break(random, name):
    weights = embedding_weights(random, 64, 5, torch.float32)
    function, inputs = {
        "embed": (embed_again, (random_frames(random, 2, 28, 28), *weights)),
        "attend": (attend_again, (normal(random, 16, 5, 32, dtype=torch.float32),)),
    }[name]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), function(*inputs))


CLIPS_OF_3 = {"num_frames": 3, "num_heads": 2, "scale": 0.25}


@pytest.mark.parametrize("way", ["mark_dynamic", "dynamic=True"])
@pytest.mark.parametrize("name", ["frame_patch_embed", "add_norm", "add_norm of the embedding", "temporal_attention"])
def test_one_graph_serves_any_number_of_frames(random, name, way):
    weights = embedding_weights(random, 32, 5, torch.float32)
    norm, embedding = weights[3:], normal(random, 1, 3, 32, dtype=torch.float32)
    function = {
        "frame_patch_embed": lambda frames: embed_again(frames, *weights),
        "add_norm": lambda states: add_norm(states, states, *norm, eps=1e-5),
        "add_norm of the embedding": lambda states: add_norm(states, embedding, *norm, eps=1e-5),
        "temporal_attention": lambda states: temporal_attention(states, states, states, **CLIPS_OF_3),
    }[name]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=way == "dynamic=True" or None)
    for count in (3, 6, 9, 18):
        pixels, states = random_frames(random, count, 28, 28), normal(random, count, 5, 32, dtype=torch.float32)
        input_ = pixels if name == "frame_patch_embed" else states
        if way == "mark_dynamic":
            torch._dynamo.mark_dynamic(input_, 0)
        with torch.compiler.set_stance("fail_on_recompile" if count > 3 else "default"):
            torch.testing.assert_close(compiled(input_), function(input_))


def test_operators_keep_pytorchs_rules(random):
    weights = embedding_weights(random, 64, 5, torch.float32)
    ops, states = torch.ops.vllm_videollava, normal(random, 16, 5, 32, dtype=torch.float32)
    tests = ("test_schema", "test_faketensor")
    embedding = (random_frames(random, 2, 28, 28), *weights, MEAN, STD, 1e-5)
    torch.library.opcheck(ops.frame_patch_embed_by_triton, embedding, test_utils=tests)
    norm = (states, states[:8, 0][None], states[0, 0], states[0, 1], 1e-5)
    torch.library.opcheck(ops.add_norm_by_triton, norm, test_utils=tests)
    torch.library.opcheck(ops.temporal_attention_by_triton, (states, states, states, 8, 2, 0.25), test_utils=tests)


def test_weights_of_several_dtypes(random):
    """The result has the dtype of the convolution's weight."""
    weight, *others = embedding_weights(random, 64, 5, torch.float32)
    inputs = random_frames(random, 2, 28, 28), weight.bfloat16(), *others
    operator, options = torch.ops.vllm_videollava.frame_patch_embed_by_triton, (MEAN, STD, 1e-5)
    assert operator(*inputs, *options).dtype == torch.bfloat16
    torch.library.opcheck(operator, (*inputs, *options), test_utils=("test_schema", "test_faketensor"))


def test_channels_far_apart(random):
    """Offsets in memory may be beyond 2^31."""
    frames, gap = random_frames(random, 1, 28, 28), 1_100_000_000
    memory = torch.empty(2 * gap + 784, dtype=torch.uint8, device=DEVICE)
    apart = memory.as_strided((1, 3, 28, 28), (784, gap, 28, 1))
    apart.copy_(frames)
    check_embedding(apart, embedding_weights(random, 64, 5, torch.float32), torch.float32)


MISSHAPEN = {
    "weight": lambda inputs: {"weight": inputs["weight"][:, :1]},
    "weight of rectangles": lambda inputs: {"weight": inputs["weight"][:, :, :7]},
    "class_embedding": lambda inputs: {"class_embedding": inputs["class_embedding"][:8]},
    "position_embedding": lambda inputs: {"position_embedding": inputs["position_embedding"][:, :32]},
    "norm_weight": lambda inputs: {"norm_weight": inputs["norm_weight"][:8]},
    "norm_bias": lambda inputs: {"norm_bias": inputs["norm_bias"][:8]},
}


@pytest.mark.parametrize("name", MISSHAPEN)
def test_weights_of_other_shapes_are_refused(random, name):
    names = ("weight", "class_embedding", "position_embedding", "norm_weight", "norm_bias")
    inputs = dict(zip(names, embedding_weights(random, 64, 5, torch.float32), strict=True))
    inputs |= MISSHAPEN[name](inputs)
    with pytest.raises(ValueError, match=rf"^The tensor {name.split()[0]} is \[.*\]; it must be \[.*\]\.$"):
        frame_patch_embed(random_frames(random, 2, 28, 28), **inputs, image_mean=MEAN, image_std=STD, eps=1e-5)


@pytest.mark.parametrize(("clips", "positions", "features"), [(1, 5, 32), (2, 4, 32), (2, 5, 16)])
def test_states_of_other_shapes_are_refused(random, clips, positions, features):
    states = normal(random, 16, 5, 32, dtype=torch.float32)
    other = states[: 8 * clips, :positions, :features]
    options = {"num_frames": 8, "num_heads": 2, "scale": 0.25}
    for name, parts in (("key", (states, other, states)), ("value", (states, states, other))):
        with pytest.raises(ValueError, match=rf"^The tensor {name} is \[.*\]; it must be \[16, 5, 32\]\.$"):
            temporal_attention(*parts, **options)


@pytest.mark.parametrize("name", ["added", "norm_weight", "norm_bias"])
def test_vectors_of_other_lengths_are_refused(random, name):
    states = normal(random, 16, 5, 32, dtype=torch.float32)
    vectors = {"added": states[:8, 0][None], "norm_weight": states[0, 0], "norm_bias": states[0, 1]}
    vectors[name] = vectors[name][..., :16]
    with pytest.raises(ValueError, match=rf"^The tensor {name} is \[.*16\]; it must be \[.*32\]\.$"):
        add_norm(states, **vectors, eps=1e-5)


def test_triton_is_what_runs(monkeypatch, random):
    def fail(*_args, **_options):
        raise AssertionError

    for name in ("frame_patch_embed", "temporal_attention", "add_norm"):
        monkeypatch.setattr(reference, name, fail)
    assert dispatch.takes(torch.empty(1, device=DEVICE))
    embed_again(random_frames(random, 2, 28, 28), *embedding_weights(random, 64, 5, torch.float32))
    attend_again(normal(random, 16, 5, 32, dtype=torch.float32))


@triton.jit
def multiply(left, right, output, SIZE: tl.constexpr):
    offsets = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    tl.store(output + offsets, tl.dot(tl.load(left + offsets), tl.load(right + offsets)))


@pytest.mark.skipif(not knobs.runtime.interpret, reason="it is about the interpreter")
def test_the_interpreter_still_multiplies_bfloat16_as_integers(random):
    """When this fails, `dispatch.operand_type` can go."""
    matrices = [normal(random, 16, 16, dtype=torch.bfloat16) for _ in range(2)]
    product = torch.zeros(16, 16)
    multiply[(1,)](*matrices, product, SIZE=16)
    assert (product - matrices[0].float() @ matrices[1].float()).abs().max() > 1e6
