"""Ask about a clip, about a picture and about both together, with vLLM's `LLM.chat` and with `LLM.generate`.

    python examples/offline_video.py --video clip.mp4 --image picture.jpg --question "What happens here?"

Without --video or --image, a small clip or picture is drawn.
With VLLM_LOGGING_LEVEL=ERROR in the environment, vLLM prints less in between.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from vllm import LLM, SamplingParams

from vllm_videollava.tiny.drawing import write_image, write_video
from vllm_videollava.tiny.world import random_clip_scene, random_image_scene

PROMPT = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions. "
    "USER: {placeholders}\n{question} ASSISTANT:"
)
GREEDY = SamplingParams(temperature=0, max_tokens=128)


def main() -> None:
    args = parse_args()
    # The user of this script can read these files anyway.
    llm = LLM(
        args.model,
        dtype=args.dtype,
        max_model_len=args.max_model_len,
        enforce_eager=args.enforce_eager,
        allowed_local_media_path="/",
    )
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        video = args.video or write_video(random_clip_scene(rng), Path(folder, "clip.mp4"))
        image = args.image or write_image(random_image_scene(rng), Path(folder, "picture.jpg"))
        ways = {"a clip": {"video": video}, "an image": {"image": image}, "both": {"video": video, "image": image}}
        for name, media in ways.items():
            show(f"LLM.chat with {name}", chat(llm, media, args.question))
        for name, media in ways.items():
            show(f"LLM.generate with {name}", generate(llm, media, args.question))


def chat(llm: LLM, media: dict[str, Path], question: str) -> str:
    """Ask with messages like those for a server; vLLM makes the prompt from them."""
    parts = [{"type": f"{kind}_url", f"{kind}_url": {"url": path.resolve().as_uri()}} for kind, path in media.items()]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]
    return llm.chat(messages, GREEDY, use_tqdm=False)[0].outputs[0].text


def generate(llm: LLM, media: dict[str, Path], question: str) -> str:
    """Ask with a prompt of your own, in which placeholders mark where the media go."""
    placeholders = "".join(f"<{kind}>" for kind in media)
    prompt = PROMPT.format(placeholders=placeholders, question=question)
    outputs = llm.generate({"prompt": prompt, "multi_modal_data": media}, GREEDY, use_tqdm=False)
    return outputs[0].outputs[0].text


def show(heading: str, answer: str) -> None:
    print(f"\n{heading}\n{'-' * len(heading)}\n{answer.strip()}", flush=True)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="LanguageBind/Video-LLaVA-7B", help="folder or Hugging Face repository")
    parser.add_argument("--video", type=Path, metavar="FILE")
    parser.add_argument("--image", type=Path, metavar="FILE")
    parser.add_argument("--question", default="What do you see?")
    parser.add_argument("--dtype", default="auto", help="type of weights and activations, such as float32")
    parser.add_argument("--max-model-len", type=int, metavar="N", help="maximum tokens of prompt and answer")
    parser.add_argument("--enforce-eager", action="store_true", help="start faster but answer more slowly")
    return parser.parse_args()


if __name__ == "__main__":
    main()
