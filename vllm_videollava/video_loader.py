"""vLLM's interface to `frames`: the bytes of a clip become its sampled frames."""

import math

from vllm.multimodal.video import VideoLoader

NAME = "video_llava"


class ClipLoader(VideoLoader):
    """Decodes exactly the frames the model sees."""

    @classmethod
    def load_bytes(cls, data: bytes, num_frames: int, clip_frames: int, **kwargs):
        """Return `clip_frames` frames, uint8 `[T, H, W, 3]`, and metadata with the keys that vLLM uses.

        Args:
            num_frames: what a request or flag asks for, -1 for nothing.
            clip_frames: what the checkpoint takes.

        Raises:
            ValueError: `data` is no video that can be decoded, or another
                number of frames is asked for than the checkpoint takes.
        """
        if num_frames not in (-1, clip_frames):
            raise ValueError(
                f"{num_frames} frames of a video were asked for, but this model takes {clip_frames}; "
                "leave num_frames and fps out of media_io_kwargs."
            )
        # Not before it is needed: vLLM's workers register this class too, and decode nothing.
        from vllm_videollava.frames import decode_clip

        clip = decode_clip(data, clip_frames)
        return clip.frames, {
            "total_num_frames": clip.num_clip_frames,
            "fps": clip.frames_per_second,
            "duration": clip.num_clip_frames / (clip.frames_per_second or math.inf),
            "video_backend": NAME,
            "frames_indices": clip.indices,
            "do_sample_frames": False,
        }
