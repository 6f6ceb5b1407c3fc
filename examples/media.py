"""Make a small clip and a small picture, for trying things out without media of one's own.

from media import write_clip, write_picture
write_clip("clip.mp4")
write_picture("picture.jpg")
"""

from fractions import Fraction
from os import PathLike
from pathlib import Path

from PIL import Image, ImageDraw


def write_clip(
    path: str | PathLike, num_frames: int = 24, width: int = 320, height: int = 240, fps: float = 12
) -> Path:
    """Write an H.264 clip of a red circle that moves from left to right, and return its path."""
    # Only here, so that whoever has clips of their own needs no PyAV.
    import av

    with av.open(str(path), "w", format="mp4") as clip:
        stream = clip.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(num_frames):
            picture = draw_circle((index + 0.5) / num_frames, width, height, "crimson")
            clip.mux(stream.encode(av.VideoFrame.from_image(picture)))
        clip.mux(stream.encode())
    return Path(path)


def write_picture(path: str | PathLike, width: int = 320, height: int = 240) -> Path:
    """Write a JPEG of a blue circle in the middle, and return its path."""
    draw_circle(0.5, width, height, "royalblue").save(path, "JPEG")
    return Path(path)


def draw_circle(position: float, width: int, height: int, colour: str) -> Image.Image:
    """Draw a circle, its centre at `position` from 0, the left edge, to 1, the right."""
    picture = Image.new("RGB", (width, height), "beige")
    ImageDraw.Draw(picture).circle((position * width, height / 2), height / 5, fill=colour)
    return picture
