"""Whatever goes into the renderer and its gate: what comes out has the forms that the engine takes, or a sentence."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from attack_media import image_url, video_url
from clips import encode_clip, moving_frames
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

IMAGE_TOKENS, VIDEO_TOKENS, VOCABULARY, MAX_MODEL_LEN = 16, 136, 384, 600
IMAGE_ID, VIDEO_ID = 257, 258
MAX_SENTENCE = 600

attack = settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
one_of = st.sampled_from


@pytest.fixture(scope="module")
def renderer(checkpoint):
    from vllm.engine.arg_utils import EngineArgs
    from vllm.plugins import load_general_plugins
    from vllm.renderers import renderer_from_config

    load_general_plugins()
    engine_args = EngineArgs(str(checkpoint), dtype="float32", max_model_len=MAX_MODEL_LEN)
    renderer = renderer_from_config(engine_args.create_engine_config())
    yield renderer
    renderer.shutdown()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attack")
    Image.fromarray(moving_frames(1, 40, 60)[0]).save(folder / "image.png")
    clip = encode_clip(moving_frames(9, 48, 64))
    (folder / "clip.mp4").write_bytes(clip)
    (folder / "damaged.mp4").write_bytes(clip[: len(clip) // 2])
    (folder / "empty").write_bytes(b"")
    return folder


def arrays(min_dims: int, max_dims: int):
    """Arrays and tensors of odd shapes and types, none of them large."""
    sizes = one_of([0, 1, 2, 3, 3, 4, 8, 56, 56, 70, 200])
    shapes = st.lists(sizes, min_size=min_dims, max_size=max_dims).filter(lambda shape: np.prod(shape) < 2_000_000)
    dtypes = one_of(
        [np.uint8] * 6 + [np.int8, np.int64, np.float16, np.float32, np.float64, bool, np.complex64, object, "U1"]
    )
    fills = one_of([0, 1, 255, -1, 0.5, 300, float("nan"), float("inf")])
    return st.builds(_array, shapes, dtypes, fills, st.booleans())


def _array(shape, dtype, fill, as_tensor):
    with np.errstate(all="ignore"):
        array = np.full(shape, fill, np.float64).astype(dtype)
    if as_tensor and array.dtype.kind in "iufbc":
        tensor = torch.from_numpy(array)
        return tensor.bfloat16() if array.dtype == np.float16 else tensor
    return array


pil_images = st.builds(
    Image.new,
    one_of(["RGB", "RGB", "L", "RGBA", "P", "1", "I", "F", "CMYK", "LA", "I;16", "YCbCr", "HSV"]),
    st.tuples(one_of([0, 1, 2, 56, 100, 300]), one_of([0, 1, 2, 56, 100, 300])),
)


class Odd:
    """What no library hands over."""


def junk(folder: Path):
    return one_of(
        [None, 0, "", "x", str(folder / "image.png"), b"", b"\xff" * 10, {}, [], (), [[]], [None], Odd(), image_url()]
        + [float("nan"), {"image": None}, object, iter([]), video_url(), np.uint8(3), (None, None), (1, 2, 3), set()]
    )


def paths(folder: Path):
    names = ["image.png", "clip.mp4", "damaged.mp4", "empty", "missing", ".", "a\0b", "x" * 300]
    return one_of([folder / name for name in names])


def prepared(folder: Path):
    """What the connector hands over, and what another connector might."""
    from vllm.multimodal.media import MediaWithBytes

    from vllm_videollava.pixels import PreparedImage

    shapes = one_of([(2, 56, 56, 3)] * 3 + [(2, 55, 56, 3), (1, 56, 56, 3), (2, 56, 56), (2, 3, 56, 56), (0,)])
    dtypes = one_of([np.uint8, np.uint8, np.int8, np.float32])
    image = st.builds(lambda shape, dtype: np.zeros(shape, dtype).view(PreparedImage), shapes, dtypes)
    return image | st.builds(MediaWithBytes, image | pil_images | arrays(2, 4) | junk(folder), st.binary(max_size=4))


def images(folder: Path):
    item = pil_images | arrays(2, 3) | prepared(folder) | paths(folder) | junk(folder)
    good = st.just(Image.new("RGB", (40, 60), "red"))
    return good | item | st.lists(item | good, max_size=3) | arrays(4, 4) | st.lists(good, max_size=3)


def videos(folder: Path):
    frames = arrays(3, 5) | st.lists(pil_images | arrays(2, 3) | junk(folder), max_size=9)
    metadata = one_of([{}, None, {"fps": -1}, {"frames_indices": [10**9]}, "x", 1])
    item = frames | st.tuples(frames, metadata) | paths(folder) | prepared(folder) | junk(folder)
    good = one_of([np.zeros((9, 56, 60, 3), np.uint8), [Image.new("RGB", (40, 60))] * 3, torch.zeros(2, 3, 9, 9).byte()])
    return good | item | st.lists(item, max_size=3)


IDS = [1, 5, 257, 258, 257, 258, 383, 384, -1, -(2**31), 2**31, 2**63, 10**30]
TEXTS = ["", "a", "<image>", "<video>", "\n", "<!image>", "</s>", "\0", "\ud800", "<image>" * 16, "é🎉"]
UUIDS = [None, "a", "a", "b", "", "\ud800", 1, b"x", {}, [], "x" * 2000]


@st.composite
def prompts(draw, folder: Path):
    prompt = draw(
        st.builds(lambda ids: {"prompt_token_ids": ids}, st.lists(one_of(IDS[:6]), min_size=1, max_size=5))
        | st.builds(lambda ids: {"prompt_token_ids": ids}, st.lists(one_of(IDS), max_size=5))
        | st.builds(lambda texts: {"prompt": "".join(texts)}, st.lists(one_of(TEXTS), max_size=5))
        | st.just({"prompt_token_ids": [1, *[257] * 16, 5, *[258] * 136]})
        | st.just({"prompt_token_ids": [1, 257, 258]})
    )
    data = {}
    if draw(st.booleans()):
        data["image"] = draw(images(folder))
    if draw(st.booleans()):
        data["video"] = draw(videos(folder))
    if not draw(st.integers(0, 15)):
        data[draw(one_of(["audio", "vision_chunk", "x", ""]))] = draw(junk(folder))
    if data or draw(st.booleans()):
        prompt["multi_modal_data"] = data
    if draw(st.booleans()):
        ids = one_of(UUIDS)
        prompt["multi_modal_uuids"] = draw(
            st.dictionaries(one_of(["image", "video", "audio"]), ids | st.lists(ids, max_size=3), max_size=2)
        )
    if not draw(st.integers(0, 3)):
        prompt["mm_processor_kwargs"] = draw(
            st.just({"image_aspect_ratio": "pad"})
            | st.dictionaries(one_of(["images", "image_aspect_ratio", "self", "text"]), junk(folder), max_size=2)
        )
    return prompt


def test_the_renderer_gives_what_the_engine_takes_or_a_sentence(renderer, files):
    from vllm.renderers import TokenizeParams

    outcomes = {}

    @attack
    @given(prompts(files))
    def render(prompt):
        try:
            (engine_input,) = renderer.render_cmpl([prompt], TokenizeParams(MAX_MODEL_LEN))
        except ValueError as error:
            check_sentence(str(error), files)
            outcomes["refused"] = outcomes.get("refused", 0) + 1
        else:
            check_engine_input_is_right(engine_input)
            outcomes[engine_input["type"]] = outcomes.get(engine_input["type"], 0) + 1

    render()
    print(outcomes)
    assert min(outcomes[outcome] for outcome in ("refused", "token", "multimodal")) > 10


def check_sentence(sentence: str, folder: Path) -> None:
    assert len(sentence) < MAX_SENTENCE, sentence[:2000]
    assert sentence.isprintable(), repr(sentence)
    assert sentence[:1].isupper() or re.match(r"\w", sentence), sentence
    assert not re.search(r"array\(|tensor\(|PreparedImage|MediaWithBytes|0x[0-9a-f]{6}|Traceback|<PIL", sentence), sentence
    assert str(folder) not in sentence


def check_engine_input_is_right(engine_input) -> None:
    """Check what leaves for the engine without the package's own gate."""
    token_ids = engine_input["prompt_token_ids"]
    assert all(type(token_id) is int and 0 <= token_id < VOCABULARY for token_id in token_ids)
    if engine_input["type"] == "token":
        assert not {IMAGE_ID, VIDEO_ID} & set(token_ids)
        return
    assert engine_input["type"] == "multimodal"
    covered = []
    for modality, token_id, length, key, shape in (
        ("image", IMAGE_ID, IMAGE_TOKENS, "pixel_values_images", (3, 56, 56)),
        ("video", VIDEO_ID, VIDEO_TOKENS, "pixel_values_videos", (8, 3, 56, 56)),
    ):
        places = engine_input["mm_placeholders"].get(modality, [])
        for place in places:
            where = range(place.offset, place.offset + place.length)
            assert [token_ids[index] for index in where] == [token_id] * length
            covered += where
        names = engine_input["mm_hashes"].get(modality, [])
        items = engine_input["mm_kwargs"].get(modality, [])
        assert len(places) == len(items) == len(names)
        assert all(isinstance(name, str) and name.isprintable() for name in names)
        for item in items:
            # The engine has it already.
            if item is not None:
                (pixels,) = item.get_data().values()
                assert list(item) == [key]
                assert pixels.dtype == torch.uint8
                assert pixels.shape == shape
    assert sorted(covered) == [index for index, token_id in enumerate(token_ids) if token_id in (IMAGE_ID, VIDEO_ID)]
    assert len(set(covered)) == len(covered)
