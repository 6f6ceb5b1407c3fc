"""The pixels that a model takes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PixelFormat:
    """The number of pixels that a model takes of each image and video, and how they are made.

    Attributes:
        num_frames: frames of a video.
        image_size: side of an image.
        video_size: side of a frame.
        original: made as the original code makes them, or as transformers does.
    """

    num_frames: int
    image_size: int
    video_size: int
    original: bool

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of a `PreparedImage`: cropped, and padded."""
        return (2, self.image_size, self.image_size, 3)

    @property
    def clip_shape(self) -> tuple[int, ...]:
        return (self.num_frames, self.video_size, self.video_size, 3)
