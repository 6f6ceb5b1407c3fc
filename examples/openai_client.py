"""Ask a running server about a clip or a picture with the package `openai`, and print the answer as it arrives.

    vllm-videollava serve LanguageBind/Video-LLaVA-7B
    python examples/openai_client.py --video clip.mp4 --question "What happens here?"

Without --video and --image, a small clip is drawn, which needs the package
vllm_videollava. The file itself is sent, so the server may be on another machine.
"""

import argparse
import base64
import os
import tempfile
from pathlib import Path

from openai import OpenAI

# These need not be exact: the server recognises the format by the content.
MIME_TYPES = {"video": "video/mp4", "image": "image/jpeg"}


def main() -> None:
    args = parse_args()
    content = [media_part(kind, path) for kind, path in (("video", args.video), ("image", args.image)) if path]
    if not content:
        content = [draw_part()]
    content.append({"type": "text", "text": args.question})

    # The package `openai` requires a key; a vLLM server checks it only if told to.
    client = OpenAI(base_url=args.base_url, api_key=os.environ.get("OPENAI_API_KEY", "none"))
    stream = client.chat.completions.create(
        model=client.models.list().data[0].id,
        messages=[{"role": "user", "content": content}],
        max_tokens=256,
        stream=True,
    )
    for chunk in stream:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


def draw_part() -> dict:
    """Draw a clip of a circle that moves left, and put it into a message."""
    import numpy as np

    from vllm_videollava.tiny.drawing import write_video
    from vllm_videollava.tiny.world import random_clip_scene

    scene = random_clip_scene(np.random.default_rng(0), 1, shape="circle", behaviour="left")
    with tempfile.TemporaryDirectory() as folder:
        return media_part("video", write_video(scene, Path(folder, "clip.mp4")))


def media_part(kind: str, path: Path) -> dict:
    """Put a file into a message as a data URL."""
    data = base64.b64encode(path.read_bytes()).decode()
    return {"type": f"{kind}_url", f"{kind}_url": {"url": f"data:{MIME_TYPES[kind]};base64,{data}"}}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", default="http://localhost:8000/v1", metavar="URL")
    parser.add_argument("--video", type=Path, metavar="FILE")
    parser.add_argument("--image", type=Path, metavar="FILE")
    parser.add_argument("--question", default="What do you see?")
    return parser.parse_args()


if __name__ == "__main__":
    main()
