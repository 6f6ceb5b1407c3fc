"""The form of the pixels that a model takes."""

from dataclasses import dataclass

INPUT_NAMES = {"image": "pixel_values_images", "video": "pixel_values_videos"}
"""The names of the model's inputs, by modality."""


@dataclass(frozen=True)
class PixelFormat:
    """The size of the images and videos that a model takes, and the code whose preprocessing is followed.

    Attributes:
        num_frames: frames of a video.
        image_size: side of an image, in pixels.
        video_size: side of a frame, in pixels.
        original: whether pixels are made as by the original code, rather than as by transformers.
    """

    num_frames: int
    image_size: int
    video_size: int
    original: bool

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of a `PreparedImage`, which holds the image twice: cropped and padded."""
        return (2, self.image_size, self.image_size, 3)

    @property
    def clip_shape(self) -> tuple[int, ...]:
        return (self.num_frames, self.video_size, self.video_size, 3)

    @property
    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of one item of the model's inputs, by modality."""
        return {
            "image": (3, self.image_size, self.image_size),
            "video": (self.num_frames, 3, self.video_size, self.video_size),
        }
