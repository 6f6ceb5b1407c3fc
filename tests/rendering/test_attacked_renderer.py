"""Whatever goes into the renderer and its gate: what comes out has the forms that the engine takes, or a sentence."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers.asking import MAX_MODEL_LEN
from helpers.attack_media import image_url, video_url
from helpers.clips import encode_clip, moving_frames

IMAGE_TOKENS, VIDEO_TOKENS, VOCABULARY = 16, 136, 384
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
        [
            *(None, 0, "", "x", str(folder / "image.png"), b"", b"\xff" * 10, image_url(), video_url(), float("nan")),
            *({}, [], (), [[]], [None], (None, None), (1, 2, 3), set(), {"image": None}, iter([])),
            *(Odd(), object, np.uint8(3)),
        ]
    )


def paths(folder: Path):
    names = ["image.png", "clip.mp4", "damaged.mp4", "empty", "missing", ".", "a\0b"]
    return one_of([folder / name for name in names])


def prepared(folder: Path):
    """What the connector hands over, and what another connector might."""
    from vllm.multimodal.media import MediaWithBytes

    from vllm_videollava.decoding.pixels import PreparedImage

    shapes = one_of([(2, 56, 56, 3)] * 3 + [(2, 55, 56, 3), (1, 56, 56, 3), (2, 56, 56), (2, 3, 56, 56), (0,)])
    dtypes = one_of([np.uint8, np.uint8, np.int8, np.float32])
    image = st.builds(lambda shape, dtype: np.zeros(shape, dtype).view(PreparedImage), shapes, dtypes)
    return image | st.builds(MediaWithBytes, image | pil_images | arrays(2, 4) | junk(folder), st.binary(max_size=4))


GOOD = {
    "image": [Image.new("RGB", (40, 60), "red"), np.zeros((20, 30, 3), np.uint8), torch.full((3, 9, 8), 7).byte()],
    "video": [np.zeros((9, 56, 60, 3), np.uint8), [Image.new("L", (40, 60))] * 3, torch.zeros(2, 3, 9, 9).byte()],
}


def items(modality: str, folder: Path):
    """One item, or something else in the place of one."""
    if modality == "image":
        return pil_images | arrays(2, 3) | prepared(folder) | paths(folder) | junk(folder)
    frames = arrays(3, 5) | st.lists(pil_images | arrays(2, 3) | junk(folder), max_size=9)
    metadata = one_of([{}, None, {"fps": -1}, {"frames_indices": [10**9]}, "x", 1])
    return frames | st.tuples(frames, metadata) | paths(folder) | prepared(folder) | junk(folder)


@st.composite
def media(draw, modality: str, folder: Path):
    """Whatever is given as images or as videos, and how many there are, more or less."""
    good = st.lists(one_of(GOOD[modality]), max_size=3)
    if draw(st.booleans()):
        given = draw(good)
    else:
        given = draw(st.lists(items(modality, folder) | one_of(GOOD[modality]), max_size=3))
    if not draw(st.integers(0, 5)):
        return draw(items(modality, folder) | arrays(4, 5)), 1
    return given[0] if len(given) == 1 and draw(st.booleans()) else given, len(given)


IDS = [1, 5, 257, 258, 257, 258, 383, 384, -1, -(2**31), 2**31, 2**63, 10**30]
TEXTS = ["", "a", "<image>", "<video>", "\n", "<!image>", "</s>", "\0", "\ud800", "<image>" * 16, "é🎉"]
UUIDS = [None, "a", "a", "b", "", "\ud800", 1, b"x", {}, [], "x" * 2000]


@st.composite
def prompts(draw, folder: Path):
    data, ids, texts = {}, [1, 5], ["a"]
    for modality, token_id, length in (("image", IMAGE_ID, IMAGE_TOKENS), ("video", VIDEO_ID, VIDEO_TOKENS)):
        if draw(st.booleans()):
            data[modality], count = draw(media(modality, folder))
            ids += [token_id] * count * draw(one_of([1, 1, 1, length]))
            texts += [f"<{modality}>"] * count
    kind = draw(st.integers(0, 5))
    if kind < 3:
        prompt = {"prompt_token_ids": ids}
    elif kind < 5:
        prompt = {"prompt": "".join(texts)}
    else:
        prompt = draw(
            st.builds(lambda ids: {"prompt_token_ids": ids}, st.lists(one_of(IDS), max_size=5))
            | st.builds(lambda texts: {"prompt": "".join(texts)}, st.lists(one_of(TEXTS), max_size=5))
        )
    if not draw(st.integers(0, 15)):
        data[draw(one_of(["audio", "vision_chunk", "x", ""]))] = draw(junk(folder))
    if data or draw(st.booleans()):
        prompt["multi_modal_data"] = data
    if not draw(st.integers(0, 2)):
        ids = one_of(UUIDS)
        uuids = {
            name: draw(st.lists(ids, min_size=len(given), max_size=len(given)))
            for name, given in data.items()
            if isinstance(given, list)
        }
        prompt["multi_modal_uuids"] = draw(
            st.just(uuids)
            | st.dictionaries(one_of(["image", "video", "audio"]), ids | st.lists(ids, max_size=3), max_size=2)
        )
    if not draw(st.integers(0, 3)):
        prompt["cache_salt"] = draw(one_of(["a", "\ud800", ""]))
    if not draw(st.integers(0, 3)):
        prompt["mm_processor_kwargs"] = draw(
            st.just({"image_aspect_ratio": "pad"})
            | st.dictionaries(one_of(["images", "image_aspect_ratio", "self", "text"]), junk(folder), max_size=2)
        )
    return prompt


def test_the_renderer_gives_what_the_engine_takes_or_a_sentence(renderer, files):
    from vllm.exceptions import VLLMValidationError
    from vllm.renderers import TokenizeParams

    outcomes = {}

    @attack
    @given(prompts(files))
    def render(prompt):
        try:
            (engine_input,) = renderer.render_cmpl([prompt], TokenizeParams(MAX_MODEL_LEN))
        except (ValueError, VLLMValidationError) as error:
            check_sentence(str(error))
            outcomes["refused"] = outcomes.get("refused", 0) + 1
        else:
            check_engine_input_is_right(engine_input)
            outcomes[engine_input["type"]] = outcomes.get(engine_input["type"], 0) + 1

    render()
    print(outcomes)
    assert min(outcomes[outcome] for outcome in ("refused", "token", "multimodal")) > 10


IMAGES = [Image.new("RGB", (40, 60), "red")]
EDGES = {
    "no images": ({"multi_modal_data": {"image": []}}, None),
    "no videos beside an image": ({"multi_modal_data": {"image": IMAGES, "video": []}}, None),
    "no ids": ({"multi_modal_data": {"image": IMAGES}, "multi_modal_uuids": {"image": None}}, None),
    "sound": (
        {"multi_modal_data": {"audio": [0.5]}},
        "The request has 'audio' media; this model takes images and videos.",
    ),
    "chunk": (
        {"multi_modal_data": {"vision_chunk": 1}},
        "'vision_chunk' media; this model takes images and videos.",
    ),
    "image id": (
        {"multi_modal_data": {"image": IMAGES}, "multi_modal_uuids": {"image": ["a\ud800"]}},
        r"The image's uuid has 'a\ud800', which is not valid Unicode.",
    ),
    "salt": ({"cache_salt": "\udc00"}, r"The field cache_salt has '\udc00', which is not valid Unicode."),
    "no width": ({"multi_modal_data": {"image": [Image.new("RGB", (0, 5))]}}, "The image of 0x5 pixels is empty."),
    "id": ({"prompt_token_ids": [5, 384]}, "The prompt has the token id 384; the model's token ids are 0 to 383."),
}


@pytest.mark.parametrize(("prompt", "sentence"), EDGES.values(), ids=EDGES)
def test_edges(renderer, prompt, sentence):
    from vllm.renderers import TokenizeParams

    num_images = len(prompt.get("multi_modal_data", {}).get("image", ()))
    prompt = {"prompt_token_ids": [1, *[IMAGE_ID] * num_images, 5], **prompt}
    if sentence is None:
        (engine_input,) = renderer.render_cmpl([prompt], TokenizeParams(MAX_MODEL_LEN))
        check_engine_input_is_right(engine_input)
    else:
        with pytest.raises(ValueError, match=re.escape(sentence) + "$"):
            renderer.render_cmpl([prompt], TokenizeParams(MAX_MODEL_LEN))


def test_a_message_without_a_role_is_refused(renderer):
    from vllm.renderers import ChatParams, TokenizeParams

    messages = [{"role": "user", "content": "Hi"}, {"type": "apply_patch_call", "status": "completed"}]
    with pytest.raises(ValueError, match=r"^Message 2 has no role\.$"):
        renderer.render_chat([messages], ChatParams(), TokenizeParams(MAX_MODEL_LEN))


def test_vllm_knows_the_largest_token_id(renderer):
    assert renderer.get_tokenizer().max_token_id == VOCABULARY - 1


def check_sentence(sentence: str) -> None:
    assert len(sentence) < MAX_SENTENCE, sentence[:2000]
    assert sentence.isprintable(), repr(sentence)
    assert sentence[:1].isupper() or re.match(r"\w", sentence), sentence
    assert not re.search(r"array\(|tensor\(|PreparedImage|MediaWithBytes|0x[0-9a-f]{6}|Traceback|<PIL", sentence), (
        sentence
    )


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
            (pixels,) = item.get_data().values()
            assert list(item) == [key]
            assert pixels.dtype == torch.uint8
            assert pixels.shape == shape
    assert sorted(covered) == [index for index, token_id in enumerate(token_ids) if token_id in (IMAGE_ID, VIDEO_ID)]
    assert len(set(covered)) == len(covered)


def other_fields():
    """Ways in which pixels of several items could be put together, none of which is the model's."""
    from vllm.multimodal.inputs import MultiModalBatchedField, MultiModalFlatField, MultiModalSharedField

    return [
        MultiModalBatchedField(keep_on_cpu=True),
        MultiModalFlatField(slices=[slice(0, 3)]),
        MultiModalSharedField(batch_size=1),
    ]


@st.composite
def changed_engine_inputs(draw, engine_input):
    """What a broken renderer might send: what it should send, with one to three changes."""
    from vllm.multimodal.inputs import MultiModalFieldElem, MultiModalKwargsItem, PlaceholderRange

    token_ids = list(engine_input["prompt_token_ids"])
    parts = ("mm_kwargs", "mm_hashes", "mm_placeholders")
    kwargs, hashes, places = ({key: list(of_one) for key, of_one in engine_input[part].items()} for part in parts)
    for change in draw(st.lists(st.integers(0, 9), min_size=1, max_size=3)):
        modality = draw(one_of(["image", "video"]))
        name = draw(one_of([f"pixel_values_{modality}s", f"pixel_values_{modality}s", "pixel_values", "x"]))
        if change == 0:
            token_ids[draw(st.integers(0, len(token_ids) - 1))] = draw(one_of(IDS))
        elif change == 1 and places.get(modality):
            place = places[modality][0]
            offset, length = draw(st.integers(-3, 200)), draw(one_of([place.length, place.length + 1, 0, 1]))
            places[modality][0] = PlaceholderRange(offset, draw(one_of([length, place.length])))
        elif change == 2:
            draw(one_of([kwargs, hashes, places])).pop(modality, None)
        elif change == 3:
            of_one = draw(one_of([kwargs, hashes, places])).get(modality)
            if of_one:
                of_one.append(of_one[-1])
        elif change == 4:
            for one in (kwargs, hashes, places):
                one[draw(one_of(["audio", modality]))] = one.get(modality, [])
        elif change == 5:
            kwargs[modality] = [None for _ in kwargs.get(modality, ())]
        elif kwargs.get(modality) and kwargs[modality][0] is not None:
            shape = draw(one_of([(3, 56, 56), (8, 3, 56, 56), (8, 3, 56, 55), (56, 56, 3), (1, 3, 56, 56), ()]))
            data = draw(
                one_of([torch.zeros(shape, dtype=torch.uint8), torch.zeros(shape), np.zeros(shape, np.uint8), None])
            )
            (element,) = list(kwargs[modality][0].values())[:1] or [None]
            if element is not None:
                field = draw(one_of([*[element.field] * 9, *other_fields()]))
                elements = {name: MultiModalFieldElem(data=data, field=field)}
                if not draw(st.integers(0, 4)):
                    elements |= kwargs[modality][0]
                kwargs[modality][0] = MultiModalKwargsItem(elements)
    if not draw(st.integers(0, 9)):
        token_ids = token_ids[: draw(st.integers(0, len(token_ids)))]
    changed = dict(zip(parts, (kwargs, hashes, places), strict=True))
    return {**engine_input, **changed, "prompt_token_ids": token_ids}


def test_the_gate_lets_pass_what_the_engine_takes_and_nothing_else(renderer):
    from vllm.renderers import TokenizeParams

    from vllm_videollava.rendering.engine_gate import check_engine_input, input_formats

    media = {"image": [GOOD["image"][0], GOOD["image"][1]], "video": [GOOD["video"][0]]}
    prompt = {"prompt_token_ids": [1, 257, 5, 258, 257, 6], "multi_modal_data": media}
    (good,) = renderer.render_cmpl([prompt], TokenizeParams(MAX_MODEL_LEN))
    config = renderer.model_config.hf_config
    inputs = input_formats(config, renderer.model_config.multimodal_config, None)
    passed = []

    @attack
    @given(changed_engine_inputs(good))
    def change(engine_input):
        if is_right(engine_input):
            check_engine_input(engine_input, config, inputs, shares_memory=False)
            passed.append(True)
        else:
            with pytest.raises(ValueError, match=r"\.$") as error:
                check_engine_input(engine_input, config, inputs, shares_memory=False)
            check_sentence(str(error.value))
            passed.append(False)

    change()
    assert 20 < sum(passed) < len(passed) - 20


def is_right(engine_input) -> bool:
    """Tell whether the engine would take it: the model's own forms, in places within the prompt that do not overlap."""
    token_ids = engine_input["prompt_token_ids"]
    kwargs, hashes, places = (engine_input[part] for part in ("mm_kwargs", "mm_hashes", "mm_placeholders"))
    free = [True] * len(token_ids)
    if not all(0 <= token_id < VOCABULARY for token_id in token_ids) or "audio" in {*kwargs, *hashes, *places}:
        return False
    for modality, length, shape in (("image", IMAGE_TOKENS, (3, 56, 56)), ("video", VIDEO_TOKENS, (8, 3, 56, 56))):
        if len({len(one.get(modality, ())) for one in (kwargs, hashes, places)}) > 1:
            return False
        for place in places.get(modality, ()):
            where = range(place.offset, place.offset + place.length)
            if (
                place.length != length
                or not 0 <= where.start <= where.stop <= len(free)
                or not all(free[index] for index in where)
            ):
                return False
            for index in where:
                free[index] = False
        for item in kwargs.get(modality, ()):
            if item is None or list(item) != [f"pixel_values_{modality}s"]:
                return False
            (element,) = item.values()
            data = element.data
            if not isinstance(data, torch.Tensor) or data.dtype != torch.uint8 or data.shape != shape:
                return False
            if element.field in other_fields():
                return False
    return True
