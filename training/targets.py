"""What the towers are to say of each patch and of the whole, so that they learn to see before LLaMA learns to speak."""

import numpy as np
import torch
import torch.nn.functional as F
from dataset import NUM_BEHAVIOURS, NUM_COLOURS, NUM_SHAPES, Sample
from torch import nn

from vllm_videollava.tiny.world import BEHAVIOURS, COLOURS, EVENTS, SHAPES, Scene, Thing

_COLOURS = list(COLOURS)
# Of a patch: shape, colour and behaviour of the object it shows.
PATCH_CLASSES = (NUM_SHAPES, NUM_COLOURS, NUM_BEHAVIOURS)
# Of the whole, said by every frame's CLS: colour and behaviour of each shape, and which shape's event is first.
SCENE_CLASSES = (NUM_COLOURS, NUM_BEHAVIOURS) * len(SHAPES) + (NUM_SHAPES,)


class Heads(nn.Module):
    """Linear classifiers on a tower's features; only for training."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.patch, self.scene = nn.Linear(hidden_size, sum(PATCH_CLASSES)), nn.Linear(hidden_size, sum(SCENE_CLASSES))

    def forward(self, features: torch.Tensor, samples: list[Sample]) -> torch.Tensor:
        """Return the loss of features `[F, 1 + N, D]`, frame after frame of all samples."""
        patches, scenes = (torch.from_numpy(targets).to(features.device) for targets in targets_of(samples))
        patch_loss = _loss(self.patch(features[:, 1:]).flatten(0, 1), patches.flatten(0, 1), PATCH_CLASSES)
        return patch_loss + _loss(self.scene(features[:, 0]), scenes, SCENE_CLASSES)


def targets_of(samples: list[Sample]) -> tuple[np.ndarray, np.ndarray]:
    """Return the classes of patches, `[F, N, 3]`, and of the scene that each frame belongs to, `[F, 7]`."""
    patches = [_patch_classes(sample) for sample in samples]
    scenes = [np.repeat(_scene_classes(sample.scene)[None], len(sample.owners), 0) for sample in samples]
    return np.concatenate(patches), np.concatenate(scenes)


def _patch_classes(sample: Sample) -> np.ndarray:
    last = max(len(sample.owners) - 1, 1)
    frames = []
    for index, owners in enumerate(sample.owners):
        nothing = (0, 0, 0)
        table = np.array([nothing, *(_thing_classes(thing, index / last) for thing in sample.scene.things)])
        frames.append(table[owners.ravel() + 1])
    return np.stack(frames)


def _thing_classes(thing: Thing, time: float) -> tuple[int, int, int]:
    is_new = thing.behaviour == "changes" and time >= thing.event_time
    colour = thing.new_colour if is_new else thing.colour
    return SHAPES.index(thing.shape) + 1, _COLOURS.index(colour) + 1, BEHAVIOURS.index(thing.behaviour) + 1


def _scene_classes(scene: Scene) -> np.ndarray:
    by_shape = {thing.shape: thing for thing in scene.things}
    classes = []
    for shape in SHAPES:
        classes += _thing_classes(by_shape[shape], 0)[1:] if shape in by_shape else (0, 0)
    events = sorted((thing for thing in scene.things if thing.behaviour in EVENTS), key=lambda thing: thing.event_time)
    classes.append(SHAPES.index(events[0].shape) + 1 if len(events) == 2 else 0)
    return np.array(classes)


def _loss(logits: torch.Tensor, classes: torch.Tensor, counts: tuple[int, ...]) -> torch.Tensor:
    parts = logits.float().split(counts, dim=-1)
    return sum(F.cross_entropy(part, classes[:, index]) for index, part in enumerate(parts))
