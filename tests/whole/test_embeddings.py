"""Embeddings take the place of images and videos: the answers are the same, and unfit ones are refused."""

import base64
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.asking import answer_of, ask, clip, original_prompt, picture
from helpers.http_client import answer, assert_refused, chat, text, video_part
from helpers.original_answer import STEPS
from vllm_videollava.client.server import local_server
from vllm_videollava.model.encode_files import FileEncoder, save

CLIPS = clip(1), clip(2)
PICTURE = picture(3)
FLAGS = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "1024", "--enable-mm-embeds"]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("files")
    for number, data in enumerate(CLIPS):
        (folder / f"{number}.mp4").write_bytes(data)
    PICTURE.save(folder / "picture.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def embeddings(files, checkpoint) -> dict[str, list[torch.Tensor]]:
    """What the command writes, read again: the embeddings of the two clips and of the picture, in two forms."""
    written = {}
    for form in ("projected", "of the tower"):
        with FileEncoder(str(checkpoint), dtype="float32", projected=form == "projected") as encoder:
            for file in files:
                save(encoder.encode(file), file.with_suffix(".pt"))
        written[form] = [torch.load(file.with_suffix(".pt")) for file in files]
    return written


@pytest.fixture(scope="module")
def llm(checkpoint, embeddings):
    from vllm import LLM

    llm = LLM(str(checkpoint), dtype="float32", enforce_eager=True, max_model_len=1024, enable_mm_embeds=True)
    yield llm
    llm.llm_engine.engine_core.shutdown()


def generate(llm, prompt: str, **media):
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=STEPS, logprobs=1, ignore_eos=True)
    return answer_of(llm.generate({"prompt": prompt, "multi_modal_data": media}, params, use_tqdm=False)[0])


def assert_same(one, other) -> None:
    assert one[0] == other[0]
    assert one[1] == pytest.approx(other[1], abs=1e-5)


@pytest.mark.feature(
    "Engine", "embeddings in place of media", how="`--enable-mm-embeds`; the answer is that about the files"
)
@pytest.mark.parametrize("form", ["projected", "of the tower"])
def test_the_answer_is_that_about_the_files(llm, embeddings, form):
    first, second, image = embeddings[form]
    prompt = original_prompt("<video><image><video>", "What?")
    about_files = ask(llm, [CLIPS[0], PICTURE, CLIPS[1]], "What?", STEPS)
    assert_same(generate(llm, prompt, video=torch.stack([first, second]), image=[image]), about_files)
    swapped = generate(llm, prompt, video=[second, first], image=[image])
    assert swapped[1] != pytest.approx(about_files[1], abs=1e-5)


def test_a_tensor_that_remembers_its_gradient(llm, embeddings):
    prompt = original_prompt("<video>", "What?")
    one = embeddings["projected"][0]
    assert_same(generate(llm, prompt, video=[one.clone().requires_grad_()]), generate(llm, prompt, video=[one]))


def test_both_forms_in_one_request(llm, embeddings):
    first, second = embeddings["projected"][0], embeddings["of the tower"][1]
    given = generate(llm, original_prompt("<video><video>", "What?"), video=[first, second])
    assert_same(given, ask(llm, list(CLIPS), "What?", STEPS))


UNFIT = {
    "too few tokens": (
        lambda good: good[:-1],
        r"have shape \[135, 128\]; it must be \[136, 128\] or \[136, 64\]",
    ),
    "another width": (lambda good: good[:, :-1], r"have shape \[136, 127\]; it must be"),
    "not a number": (lambda good: good.fill_(float("nan")), ".*not finite in float32"),
}


@pytest.mark.parametrize(("change", "sentence"), UNFIT.values(), ids=UNFIT)
def test_unfit_embeddings_are_refused(llm, embeddings, change, sentence):
    bad = change(embeddings["projected"][0].clone())
    with pytest.raises(ValueError, match=f"^The embeddings of the video {sentence}"):
        generate(llm, original_prompt("<video>", "What?"), video=[bad])


@pytest.fixture(scope="module")
def url(checkpoint, embeddings, tmp_path_factory):
    with local_server(checkpoint, tmp_path_factory.mktemp("server") / "log", *FLAGS) as server:
        yield server.url


def embeds_part(data: bytes, kind: str = "video") -> dict:
    return {"type": f"{kind}_embeds", f"{kind}_embeds": base64.b64encode(data).decode()}


def saved(tensor: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensor, buffer)
    return buffer.getvalue()


def saved_by_numpy(tensor: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, tensor.numpy())
    return buffer.getvalue()


@pytest.mark.feature("Server", "embeddings in place of media", how="parts `image_embeds` and `video_embeds`")
@pytest.mark.parametrize("form", ["projected", "of the tower"])
@pytest.mark.parametrize("write", [saved, saved_by_numpy])
def test_over_http_too(url, embeddings, form, write):
    first, second, image = embeddings[form]
    options = {"max_tokens": 8, "ignore_eos": True}
    by_files = answer(url, video_part(CLIPS[0]), video_part(CLIPS[1]), text("What?"), **options)
    assert answer(url, embeds_part(write(first)), embeds_part(write(second)), text("What?"), **options) == by_files
    assert answer(url, embeds_part(write(image), "image"), text("What?"), **options)


UNREADABLE = "The embeddings of the video cannot be read; send the base64 of a dense tensor"


def compressed(tensor: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved(tensor))) as archive,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for entry in archive.infolist():
            small.writestr(entry.filename, archive.read(entry))
    return buffer.getvalue()


def with_shape(tokens: int) -> bytes:
    """Return a file of NumPy whose header promises more than there is."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (tokens, 128)})
    return buffer.getvalue() + bytes(512)


BAD = {
    "no base64": ({"type": "video_embeds", "video_embeds": "?"}, UNREADABLE),
    "no tensor": (embeds_part(b"abc"), UNREADABLE),
    "pickled code": (embeds_part(b"cos\nsystem\n(S'true'\ntR."), UNREADABLE),
    "null": ({"type": "video_embeds", "video_embeds": None}, "must be one string, the base64 of a tensor."),
    "a mapping": ({"type": "video_embeds", "video_embeds": {"video_embeds": "AAAA"}}, "must be one string"),
    "repeated values": (
        embeds_part(saved(torch.zeros(1, 128).expand(1 << 30, 128))),
        UNREADABLE,
    ),
    "sparse": (
        embeds_part(saved(torch.zeros(1 << 15, 1 << 15).to_sparse())),
        UNREADABLE,
    ),
    "compressed": (
        embeds_part(compressed(torch.zeros(1 << 16, 128))),
        UNREADABLE,
    ),
    "a huge shape": (embeds_part(with_shape(1 << 40)), UNREADABLE),
    "a number": (embeds_part(saved(torch.tensor(1.0))), "have shape []; it must be"),
    "an image": (embeds_part(saved(torch.zeros(3, 56, 56))), "have shape [3, 56, 56]; it must be"),
    "several": (embeds_part(saved([torch.zeros(136, 128)])), UNREADABLE),
    "whole numbers by NumPy": (
        embeds_part(saved_by_numpy(torch.zeros(136, 128).int())),
        "have dtype int32; they must be",
    ),
    "shapes that make a large one": (embeds_part(saved(torch.zeros(1, 100_000))), "have shape [1, 100000]; it"),
    "not contiguous": (
        embeds_part(saved(torch.zeros(128, 136).T)),
        UNREADABLE,
    ),
    "another shape": (embeds_part(saved(torch.zeros(10, 128))), "have shape [10, 128]; it must be [136, 128]"),
    "whole numbers": (
        embeds_part(saved(torch.zeros(136, 128, dtype=torch.int8))),
        UNREADABLE,
    ),
    "not a number": (
        embeds_part(saved(torch.full((136, 128), float("inf")))),
        "have values that are not finite in float32",
    ),
}


@pytest.mark.parametrize(("part", "sentence"), BAD.values(), ids=BAD)
def test_a_bad_part_is_refused(url, part, sentence):
    assert_refused(url, *chat(url, part, text("What?")), sentence)
    # Beside a good one, too.
    assert_refused(url, *chat(url, embeds_part(saved(torch.zeros(136, 128))), part, text("What?")), sentence)


def test_embeddings_and_files_of_one_kind_do_not_mix(url):
    assert_refused(
        url,
        *chat(url, embeds_part(saved(torch.zeros(136, 128))), video_part(CLIPS[0]), text("What?")),
        "but this one has both",
    )
