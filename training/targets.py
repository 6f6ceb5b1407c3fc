"""Classes of patches, frames and clips for the towers, so that they learn to see before LLaMA learns to speak."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from training.dataset import NUM_BEHAVIOURS, NUM_COLOURS, NUM_SHAPES, Sample
from vllm_videollava.tiny.world import BEHAVIOURS, COLOURS, EVENTS, SHAPES, Scene, Thing

_COLOURS = list(COLOURS)
# In every group, class 0 means none.
_NUM_PLACES = 8
# Each patch gives the shape and the colour of its object and, in the last hidden state, also its behaviour.
PATCH_CLASSES = (NUM_SHAPES, NUM_COLOURS, NUM_BEHAVIOURS)
# Each frame's CLS gives the colour, the column and the row of each shape that is visible in the frame.
FRAME_CLASSES = (NUM_COLOURS, _NUM_PLACES, _NUM_PLACES) * len(SHAPES)
# Each frame's CLS also gives, for the whole clip, each shape's behaviour and the shape whose event is first.
CLIP_CLASSES = (NUM_BEHAVIOURS,) * len(SHAPES) + (NUM_SHAPES,)


class Targets(NamedTuple):
    """Right classes for the frames of several samples, one sample after another.

    Attributes:
        patches: `[F, N, 3]`.
        frames: `[F, 9]`.
        clips: `[F, 4]`, the classes of the clip that a frame belongs to.
    """

    patches: torch.Tensor
    frames: torch.Tensor
    clips: torch.Tensor


class Heads(nn.Module):
    """Linear classifiers on a tower's hidden states; only for training.

    Half-way through the tower, they classify only what a single frame shows. The
    later layers are left to attention over time, which compares frames.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.middle_patch = nn.Linear(hidden_size, sum(PATCH_CLASSES[:2]))
        self.middle_frame = nn.Linear(hidden_size, sum(FRAME_CLASSES))
        self.patch = nn.Linear(hidden_size, sum(PATCH_CLASSES))
        self.frame = nn.Linear(hidden_size, sum(FRAME_CLASSES))
        self.clip = nn.Linear(hidden_size, sum(CLIP_CLASSES))

    def forward(self, hidden_states: list[torch.Tensor], samples: list[Sample]) -> torch.Tensor:
        """Return the loss of a tower's hidden states, each `[F, 1 + N, D]`."""
        last, middle = hidden_states[-1], hidden_states[len(hidden_states) // 2]
        patches, frames, clips = (part.to(last.device) for part in targets_of(samples))
        patches = patches.flatten(0, 1)
        steps = (
            _loss(self.middle_patch(middle[:, 1:]).flatten(0, 1), patches, PATCH_CLASSES[:2])
            + _loss(self.middle_frame(middle[:, 0]), frames, FRAME_CLASSES)
            + _loss(self.frame(last[:, 0]), frames, FRAME_CLASSES)
        )
        ends = _loss(self.patch(last[:, 1:]).flatten(0, 1), patches, PATCH_CLASSES)
        return 0.3 * steps + ends + 2 * _loss(self.clip(last[:, 0]), clips, CLIP_CLASSES)


def targets_of(samples: list[Sample]) -> Targets:
    patches, frames, clips = [], [], []
    for sample in samples:
        patches += [_patch_classes(sample, index) for index in range(len(sample.times))]
        frames += [_frame_classes(sample.scene, time) for time in sample.times]
        clips += [_clip_classes(sample.scene)] * len(sample.times)
    return Targets(*(torch.from_numpy(np.array(part)) for part in (patches, frames, clips)))


def _patch_classes(sample: Sample, index: int) -> np.ndarray:
    classes = [(0, 0, 0)]
    for thing in sample.scene.things:
        behaviour = BEHAVIOURS.index(thing.behaviour) + 1
        classes.append((SHAPES.index(thing.shape) + 1, _colour_class(thing, sample.times[index]), behaviour))
    return np.array(classes)[sample.owners[index].ravel() + 1]


def _frame_classes(scene: Scene, time: float) -> list[int]:
    classes = []
    for thing in _by_shape(scene):
        if thing is None or not thing.is_visible(time):
            classes += [0, 0, 0]
        else:
            places = ((np.array(thing.centre(time)) + 0.5) * (_NUM_PLACES - 1)).astype(int)
            classes += [_colour_class(thing, time), *(places.clip(0, _NUM_PLACES - 2) + 1)]
    return classes


def _clip_classes(scene: Scene) -> list[int]:
    classes = [0 if thing is None else BEHAVIOURS.index(thing.behaviour) + 1 for thing in _by_shape(scene)]
    events = sorted((thing for thing in scene.things if thing.behaviour in EVENTS), key=lambda thing: thing.event_time)
    return [*classes, SHAPES.index(events[0].shape) + 1 if len(events) == 2 else 0]


def _by_shape(scene: Scene) -> list[Thing | None]:
    things = {thing.shape: thing for thing in scene.things}
    return [things.get(shape) for shape in SHAPES]


def _colour_class(thing: Thing, time: float) -> int:
    return _COLOURS.index(thing.new_colour if thing.has_changed(time) else thing.colour) + 1


def _loss(logits: torch.Tensor, classes: torch.Tensor, counts: tuple[int, ...]) -> torch.Tensor:
    parts = logits.float().split(counts, dim=-1)
    return sum(F.cross_entropy(part, classes[:, index]) for index, part in enumerate(parts))
