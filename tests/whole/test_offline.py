"""`LLM` offline: clips are decoded in workers as in a server, and the engine answers the first while the next come."""

import re
import time
from pathlib import Path

import numpy as np
import pytest

from helpers.clips import encode_clip, moving_frames


@pytest.fixture(scope="module")
def llm(checkpoint):
    from vllm import LLM

    options = {"dtype": "float32", "enforce_eager": True, "max_model_len": 1024, "allowed_local_media_path": "/"}
    llm = LLM(str(checkpoint), disable_log_stats=False, **options)
    yield llm
    llm.llm_engine.engine_core.shutdown()


@pytest.fixture
def clip(tmp_path) -> Path:
    path = tmp_path / "clip.mp4"
    path.write_bytes(encode_clip(moving_frames(20, 48, 64)))
    return path


def prompt(*videos) -> dict:
    return {
        "prompt": "USER: " + "<video>" * len(videos) + "\nWhat? ASSISTANT:",
        "multi_modal_data": {"video": [*videos]},
    }


def test_a_damaged_clip_is_one_sentence_and_the_next_is_answered(llm, clip, tmp_path):
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=4)
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(clip.read_bytes()[:700])
    with pytest.raises(ValueError, match=r"^The video is damaged, or in a format that is not supported\.$"):
        llm.generate(prompt(bad), params, use_tqdm=False)
    with pytest.raises(ValueError, match=r"^Video 2: The video is damaged, or in a format that is not supported\.$"):
        llm.generate(prompt(clip, bad), params, use_tqdm=False)
    messages = [
        {"role": "user", "content": [{"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}]}
    ]
    with pytest.raises(ValueError, match=r"^Message 1, part 1: The video is damaged, or in a format"):
        llm.chat(messages, params, use_tqdm=False)
    assert llm.generate(prompt(clip), params, use_tqdm=False)[0].outputs[0].token_ids


def test_an_error_names_the_prompt_and_the_file(llm, clip, tmp_path):
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=4)
    bad, gone = tmp_path / "50% bad #1?.mp4", tmp_path / "gone.mp4"
    bad.write_bytes(b"This is not a video.")
    cannot = r"The video is plain text, not a video file; send the video file itself\.$"

    def asks(*parts: dict) -> list[dict]:
        return [{"role": "user", "content": [*parts, {"type": "text", "text": "What?"}]}]

    def asks_about(url: str) -> list[dict]:
        return asks({"type": "video_url", "video_url": {"url": url}})

    good, text = asks_about(clip.as_uri()), asks()
    refused = {
        r"^Prompt 3 \('50% bad #1\?\.mp4'\): " + cannot: (llm.generate, [prompt(clip), prompt(clip), prompt(bad)]),
        r"^Prompt 1 \('50% bad #1\?\.mp4'\): Video 2: " + cannot: (llm.generate, [prompt(clip, bad), prompt(clip)]),
        r"^Prompt 2: The video array has shape \(8, 8, 4, 7\)": (
            llm.generate,
            [prompt(clip), prompt(np.zeros((8, 8, 4, 7), np.uint8))],
        ),
        r"^Prompt 2: The prompt has 1 <video> placeholder": (llm.generate, [prompt(clip), {"prompt": "<video>"}]),
        r"^Prompt 2 \('50% bad #1\?\.mp4'\): Message 1, part 1: " + cannot: (
            llm.chat,
            [good, asks_about(bad.as_uri())],
        ),
        r"^Prompt 3: Message 1, part 1: The video is damaged, or in a format": (
            llm.chat,
            [good, text, asks_about("data:video/mp4;base64,AAAA")],
        ),
        r"^Message 1, part 1: " + cannot: (llm.chat, [asks_about(bad.as_uri())]),
    }
    for pattern, (ask, prompts) in refused.items():
        with pytest.raises(ValueError, match=pattern) as error:
            ask(prompts, params, use_tqdm=False)
        assert str(tmp_path) not in str(error.value)
    # Whoever names a file that cannot be read is told which path that is.
    sentence = f"Prompt 2: The video file {str(gone)!r} cannot be read: No such file or directory."
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        llm.generate([prompt(clip), prompt(gone)], params, use_tqdm=False)
    # Those that came before the bad ones are taken back.
    assert not llm.llm_engine.has_unfinished_requests()
    assert len(llm.generate([prompt(clip), prompt(clip)], params, use_tqdm=False)) == 2


def test_decoding_overlaps_with_generation(llm, tmp_path, monkeypatch):
    from vllm import SamplingParams

    from vllm_videollava.decoding.pool import shared_pool

    pool, decoded_at = shared_pool(), []
    submit = pool.submit

    def submit_slowly(job):
        time.sleep(3)
        future = submit(job)
        future.add_done_callback(lambda _: decoded_at.append(time.monotonic()))
        return future

    monkeypatch.setattr(pool, "submit", submit_slowly)
    clips = [tmp_path / "first.mp4", tmp_path / "second.mp4"]
    for seed, path in enumerate(clips, 1):
        path.write_bytes(encode_clip(moving_frames(20, 48, 64, seed)))
    params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    first, _ = llm.generate([prompt(path) for path in clips], params, use_tqdm=False)
    assert first.metrics.last_token_ts < decoded_at[1]
