"""`LLM` offline: clips are decoded in workers as in a server, and the engine answers the first while the next come."""

import time
from pathlib import Path

import pytest
from clips import encode_clip, moving_frames


@pytest.fixture(scope="module")
def llm(checkpoint):
    from vllm import LLM

    llm = LLM(str(checkpoint), dtype="float32", enforce_eager=True, disable_log_stats=False, max_model_len=1024)
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
    with pytest.raises(ValueError, match=r"^The video cannot be decoded: Invalid data found when processing input\.$"):
        llm.generate(prompt(bad), params, use_tqdm=False)
    with pytest.raises(ValueError, match=r"^Video 2: The video cannot be decoded"):
        llm.generate(prompt(clip, bad), params, use_tqdm=False)
    messages = [
        {"role": "user", "content": [{"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}]}
    ]
    with pytest.raises(ValueError, match=r"^Message 1, part 1: The video cannot be decoded"):
        llm.chat(messages, params, use_tqdm=False)
    assert llm.generate(prompt(clip), params, use_tqdm=False)[0].outputs[0].token_ids


def test_decoding_overlaps_with_generation(llm, tmp_path, monkeypatch):
    from vllm import SamplingParams

    from vllm_videollava import media_io

    pool, decoded_at = media_io.shared_pool(), []

    class SlowPool:
        threads = pool.threads

        def run(self, *args, **kwargs):
            time.sleep(3)
            frames = pool.run(*args, **kwargs)
            decoded_at.append(time.monotonic())
            return frames

    monkeypatch.setattr(media_io, "shared_pool", SlowPool)
    clips = [tmp_path / "first.mp4", tmp_path / "second.mp4"]
    for seed, path in enumerate(clips, 1):
        path.write_bytes(encode_clip(moving_frames(20, 48, 64, seed)))
    params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    first, _ = llm.generate([prompt(path) for path in clips], params, use_tqdm=False)
    assert first.metrics.last_token_ts < decoded_at[1]
