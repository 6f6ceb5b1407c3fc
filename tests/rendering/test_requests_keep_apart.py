"""No request reaches the model's settings, or the pixels of another request: neither by options nor by ids of media."""

import pytest
from PIL import Image

from helpers.clips import encode_clip, smooth_frames
from helpers.http_client import chat, image_part, text, video_part

IMAGE = image_part(Image.fromarray(smooth_frames(1, 64, 96)[0]))
VIDEO = video_part(encode_clip(smooth_frames(20, 64, 96)))
OTHER_IMAGE = image_part(Image.fromarray(smooth_frames(1, 64, 96, seed=1)[0]))
OTHER_VIDEO = video_part(encode_clip(smooth_frames(20, 64, 96, seed=1)))


def log_probabilities(server_url: str, *parts, **options) -> list[float]:
    status, reply = chat(server_url, *parts, text("What?"), logprobs=True, **options)
    assert status == 200, reply
    return [step["logprob"] for step in reply["choices"][0]["logprobs"]["content"]]


@pytest.fixture(scope="module")
def alone(server_url) -> dict[str, list[float]]:
    """What is answered before anybody tries anything."""
    media = {"image": IMAGE, "video": VIDEO, "other image": OTHER_IMAGE, "other video": OTHER_VIDEO}
    return {name: log_probabilities(server_url, part) for name, part in media.items()}


OPTIONS = {
    "the connector's settings": {"media_io_kwargs": {"video_llava": {"image_size": 112, "num_frames": 2}}},
    "arithmetic": {"media_io_kwargs": {"video_llava": {"original": False}}},
    "an empty one of the connector's": {"media_io_kwargs": {"video_llava": {}}},
    "another modality": {"media_io_kwargs": {"audio": {"sampling_rate": 8000}}},
    "unknown option": {"media_io_kwargs": {"image": {"size": 112}}},
    "frames": {"media_io_kwargs": {"video": {"num_frames": 10_000_000}}},
    "a long value": {"media_io_kwargs": {"video": {"num_frames": "8\nWARNING forged" + "x" * 1_000_000}}},
    "colour": {"media_io_kwargs": {"image": {"rgba_background_color": [0, 0, 256]}}},
    "the processor's arguments": {"mm_processor_kwargs": {"images": []}},
    "its own name": {"mm_processor_kwargs": {"self": 1}},
    "arguments of arguments": {"mm_processor_kwargs": {"images_kwargs": {"image_aspect_ratio": "pad"}}},
    "nesting": {"mm_processor_kwargs": {"image_aspect_ratio": {"pad": [1, [2, [3]]]}}},
    "audio": {"mm_processor_kwargs": {"use_audio_in_video": True}},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_what_a_request_may_not_set(server_url, alone, options):
    status, reply = chat(server_url, IMAGE, VIDEO, text("What?"), **options)
    assert status == 400, reply
    assert len(reply["error"]["message"]) < 400
    assert "\n" not in reply["error"]["message"]
    assert log_probabilities(server_url, IMAGE) == pytest.approx(alone["image"], abs=1e-4)
    assert log_probabilities(server_url, VIDEO) == pytest.approx(alone["video"], abs=1e-4)


def test_a_colour_behind_an_image_is_not_that_of_others(server_url):
    transparent = image_part(Image.new("RGBA", (40, 30), (0, 0, 255, 0)))
    before = log_probabilities(server_url, transparent)
    colours = [
        log_probabilities(
            server_url, transparent, media_io_kwargs={"image": {"rgba_background_color": [red, 0, 255 - red]}}
        )
        for red in (255, 0)
    ]
    assert colours[0] != pytest.approx(before, abs=1e-3)
    # Without transparency, the picture is blue.
    assert colours[1] == pytest.approx(before, abs=1e-4)
    assert log_probabilities(server_url, transparent) == pytest.approx(before, abs=1e-4)


def test_a_colour_is_not_that_of_others_with_the_same_id(server_url):
    transparent = image_part(Image.new("RGBA", (40, 30), (0, 0, 255, 0)))
    answers = []
    for colour in ([255, 0, 0], [0, 255, 0], None):
        options = {"media_io_kwargs": {"image": {"rgba_background_color": colour}}} if colour else {}
        answers.append(log_probabilities(server_url, with_id(transparent, "a colour's"), **options))
    expected = [
        log_probabilities(server_url, image_part(Image.new("RGB", (40, 30), colour)))
        for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))
    ]
    for answer, right in zip(answers, expected, strict=True):
        assert answer == pytest.approx(right, abs=1e-4)


def with_id(part: dict, name: str, drop: bool = False) -> dict:
    return {**part, "uuid": name, **({part["type"]: None} if drop else {})}


def test_an_id_of_an_image_is_not_one_of_a_video(server_url, alone):
    for part, name in ((IMAGE, "image"), (VIDEO, "video")):
        assert log_probabilities(server_url, with_id(part, "same")) == pytest.approx(alone[name], abs=1e-4)
    for part, name in ((VIDEO, "video"), (IMAGE, "image")):
        assert log_probabilities(server_url, with_id(part, "same", drop=True)) == pytest.approx(alone[name], abs=1e-4)


def test_an_id_that_only_the_other_kind_has_is_unknown(server_url):
    log_probabilities(server_url, with_id(OTHER_IMAGE, "an image's"))
    status, reply = chat(server_url, with_id(VIDEO, "an image's", drop=True), text("What?"))
    assert status == 400, reply
    log_probabilities(server_url, with_id(OTHER_VIDEO, "a video's"))
    status, reply = chat(server_url, with_id(IMAGE, "a video's", drop=True), text("What?"))
    assert status == 400, reply


NO_MEDIA = {
    "no address": ({"type": "image_url", "image_url": {"url": ""}}, "The image has no address."),
    "null": ({"type": "video_url", "video_url": None}, "The video has no address."),
    "embeddings": ({"type": "image_embeds", "image_embeds": "AAAA"}, "The server takes no embeddings, because"),
}


@pytest.mark.parametrize(("part", "sentence"), NO_MEDIA.values(), ids=NO_MEDIA)
def test_a_part_without_a_medium(server_url, part, sentence):
    status, reply = chat(server_url, text("What?"), part)
    assert status == 400
    assert reply["error"]["message"].startswith(f"Message 1, part 2: {sentence}")


def test_an_id_is_not_a_hash_of_what_others_send(server_url, alone):
    """Whoever knows another's picture cannot put one of his own in its place."""
    from vllm.multimodal.hasher import MultiModalHasher
    from vllm.multimodal.media import MediaWithBytes

    from vllm_videollava.media.io import MediaFileIO

    _, reply = chat(server_url, text("Hi"))
    data_url = OTHER_IMAGE["image_url"]["url"]
    file = MediaFileIO("image").load_base64("image/png", data_url.partition(",")[2])
    hashes = [
        MultiModalHasher.hash_kwargs("blake3", model_id=model, image=MediaWithBytes(file.data, digest))
        for model in (reply["model"], "model")
        for digest in (file.digest, file.data)
    ]
    for name in hashes:
        log_probabilities(server_url, with_id(IMAGE, name))
    assert log_probabilities(server_url, OTHER_IMAGE) == pytest.approx(alone["other image"], abs=1e-4)
