"""Train the tiny Video-LLaVA and write its checkpoint, in the original format.

    python -m training.train_tiny WORK CHECKPOINT

There are three stages. The image tower learns to see single pictures; then the
video tower starts from it and learns what moves and what happens; then
everything together learns to answer. WORK keeps the pictures, once all are
drawn, and the state of training, so that an interrupted run can be resumed.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from training.code_hash import mark_folder
from training.conversation import attention_bias, encode_prefix, pack, sentences
from training.dataset import Pool, Sample, scene_of
from training.model import VideoLlava
from training.original_format import train_tokenizer, write_files
from training.targets import Heads
from training.tiny_config import CONFIG, IMAGE_TOWER, VIDEO_TOWER
from vllm_videollava.tiny.questions import Question, only_colour, questions_about, questions_about_both

NUM_IMAGES, NUM_VIDEOS = 20_000, 12_000
QUESTIONS_AT_ONCE = 6
# Kinds of questions that are asked whenever possible.
HARD = ("direction", "order", "same colour")
SAVE_SECONDS = 120


class Stage(NamedTuple):
    """A stage's length, its batch size, and the peak learning rates of the towers and of everything else."""

    steps: int
    batch: int
    tower_rate: float
    rate: float


STAGES = {
    "images": Stage(2600, 128, 1.5e-3, 1.5e-3),
    "videos": Stage(1600, 32, 1.0e-3, 1.0e-3),
    "answers": Stage(2100, 24, 4.0e-4, 1.2e-3),
}


class Trainer:
    """The model, the data and the state of training."""

    def __init__(self, work: Path, workers: int, device: torch.device) -> None:
        mark_folder(work)
        torch.manual_seed(0)
        self.state_path, self.device = work / "state.pt", device
        self.rng = np.random.default_rng(0)
        self.model = VideoLlava(CONFIG, IMAGE_TOWER, VIDEO_TOWER).to(device)
        self.heads = nn.ModuleDict({medium: Heads(IMAGE_TOWER["hidden_size"]) for medium in ("image", "video")})
        self.heads.to(device)
        size, grid = IMAGE_TOWER["image_size"], IMAGE_TOWER["image_size"] // IMAGE_TOWER["patch_size"]
        self.pools = {
            medium: Pool(work, medium, count, size, grid, workers)
            for medium, count in (("image", NUM_IMAGES), ("video", NUM_VIDEOS))
        }
        self.tokenizer_model = train_tokenizer(sentences(_all_questions()), CONFIG["vocab_size"])
        self.tokenizer = sentencepiece.SentencePieceProcessor(model_proto=self.tokenizer_model)
        self.prefix = torch.tensor(encode_prefix(self.tokenizer), device=device)
        self.embed = self.model.model.embed_tokens
        self.finished: list[str] = []

    def run(self) -> None:
        state = torch.load(self.state_path, map_location=self.device) if self.state_path.exists() else None
        if state:
            self.model.load_state_dict(state["model"])
            self.heads.load_state_dict(state["heads"])
            self.finished = state["finished"]
            self.rng.bit_generator.state = state["rng"]
        for name in STAGES:
            if name not in self.finished:
                self._run_stage(name, state)
                state = None

    def write_checkpoint(self, folder: Path) -> None:
        """Write the current model in float16, in which the original is published."""
        tensors = {name: tensor.to("cpu", torch.float16) for name, tensor in self.model.state_dict().items()}
        write_files(folder, CONFIG, IMAGE_TOWER, VIDEO_TOWER, tensors, self.tokenizer_model)

    def _run_stage(self, name: str, state: dict | None) -> None:
        steps, batch, *_ = stage = STAGES[name]
        optimizer = torch.optim.AdamW(_groups(self.model, self.heads, stage), betas=(0.9, 0.98))
        first = state["step"] if state else 0
        if first:
            optimizer.load_state_dict(state["optimizer"])
        elif name == "videos":
            self._start_from_images()
        saved = time.monotonic()
        bar = tqdm(range(first, steps), name, initial=first, total=steps, smoothing=0.02, mininterval=5)
        mean = {}
        for step in bar:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * _schedule(step, steps)
            with torch.autocast(self.device.type, torch.bfloat16):
                losses = self._losses(name, batch, step)
            optimizer.zero_grad(set_to_none=True)
            sum(losses.values()).backward()
            nn.utils.clip_grad_norm_([*self.model.parameters(), *self.heads.parameters()], 1.0)
            optimizer.step()
            for key, loss in losses.items():
                mean[key] = 0.98 * mean.get(key, loss.item()) + 0.02 * loss.item()
            bar.set_postfix({key: f"{value:.3f}" for key, value in mean.items()}, refresh=False)
            if time.monotonic() - saved > SAVE_SECONDS:
                self._save(step + 1, optimizer)
                saved = time.monotonic()
        self.finished.append(name)
        self._save(0, optimizer)

    def _save(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        state = {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizer": optimizer.state_dict(),
            "rng": self.rng.bit_generator.state,
            "finished": self.finished,
            "step": step,
        }
        new = self.state_path.with_suffix(".new")
        torch.save(state, new)
        new.replace(self.state_path)

    def _start_from_images(self) -> None:
        """Copy the image tower into the video tower, with attention over time that does nothing yet."""
        self.model.video_tower.load_state_dict(self.model.image_tower.state_dict(), strict=False)
        self.heads["video"].load_state_dict(self.heads["image"].state_dict())
        for layer in self.model.video_tower.encoder.layers:
            nn.init.zeros_(layer.temporal_attn.out_proj.weight)
            nn.init.zeros_(layer.temporal_attn.out_proj.bias)

    def _losses(self, name: str, batch: int, step: int) -> dict[str, torch.Tensor]:
        if name == "answers":
            return self._answers_losses(batch, step)
        medium = name.removesuffix("s")
        return {medium: self._see(medium, self._draw((medium,), batch)[medium])[1]}

    def _answers_losses(self, batch: int, step: int) -> dict[str, torch.Tensor]:
        """Ask about a clip at half of the steps, about an image at some, and about one of each at the others."""
        media = (("video",), ("image",), ("video",), ("video", "image"), ("video",), ("video", "image"))[step % 6]
        if len(media) == 2 and self.rng.random() < 0.3:
            media = media[::-1]
        if media == ("image",):
            batch *= 4
        samples = self._draw(media, batch)
        features, losses = [], 0
        for medium in media:
            seen, loss = self._see(medium, samples[medium])
            features.append(self.model.project(seen, medium).unflatten(0, (batch, -1)).flatten(1, 2))
            losses = losses + 0.3 * loss
        questions = [self._ask(samples, index) for index in range(batch)]
        return {"tower": losses, "+".join(media): self._answer(torch.cat(features, dim=1), questions)}

    def _draw(self, media: tuple[str, ...], batch: int) -> dict[str, list[Sample]]:
        if len(media) == 1:
            return {media[0]: [self.pools[media[0]].draw(self.rng) for _ in range(batch)]}
        videos, images = zip(*(self._draw_pair() for _ in range(batch)), strict=True)
        return {"video": list(videos), "image": list(images)}

    def _draw_pair(self) -> tuple[Sample, Sample]:
        """Choose a clip and an image with one colour each; in half of the pairs, it is the same colour."""
        video = self._draw_with(lambda colour: colour is not None, "video")
        colour, same = only_colour(video.scene), self.rng.random() < 0.5
        return video, self._draw_with(lambda other: other is not None and (other == colour) == same, "image")

    def _draw_with(self, fits: Callable[[str | None], bool], medium: str) -> Sample:
        while True:
            sample = self.pools[medium].draw(self.rng)
            if fits(only_colour(sample.scene)):
                return sample

    def _ask(self, samples: dict[str, list[Sample]], index: int) -> list[Question]:
        scenes = [samples[medium][index].scene for medium in ("video", "image") if medium in samples]
        if len(scenes) == 1:
            about = questions_about(*scenes, self.rng)
        else:
            # The comparison is asked twice, because it is the hardest question.
            about = [*questions_about_both(*scenes, self.rng), questions_about_both(*scenes, self.rng)[0]]
        order = sorted(self.rng.permutation(len(about)), key=lambda index: about[index].kind not in HARD)
        return [about[index] for index in order[:QUESTIONS_AT_ONCE]]

    def _see(self, medium: str, samples: list[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
        frames = np.concatenate([sample.pixels for sample in samples])
        frames = torch.from_numpy(frames).movedim(-1, 1).to(self.device)
        tower = self.model.image_tower if medium == "image" else self.model.video_tower
        hidden_states = tower(frames)
        return hidden_states[-1], self.heads[medium](hidden_states, samples)

    def _answer(self, media: torch.Tensor, questions: list[list[Question]]) -> torch.Tensor:
        ids, labels, positions, groups = (part.to(self.device) for part in pack(questions, self.tokenizer))
        prefix = self.embed(self.prefix).expand(len(ids), -1, -1)
        embeddings = torch.cat([prefix, media, self.embed(ids)], dim=1)
        num_prefix = prefix.shape[1] + media.shape[1]
        before = torch.arange(num_prefix, device=self.device).expand(len(ids), -1)
        positions = torch.cat([before, num_prefix + positions], dim=1)
        hidden = self.model.answer(embeddings, positions, attention_bias(groups, num_prefix))[:, num_prefix:]
        learnt = labels != -100
        return F.cross_entropy(self.model.lm_head(hidden[learnt]).float(), labels[learnt])


def _all_questions() -> Iterator[Question]:
    rng = np.random.default_rng(1)
    for seed in range(2000):
        video, image = scene_of("video", seed), scene_of("image", seed)
        yield from questions_about(video, rng)
        yield from questions_about(image, rng)
        if only_colour(video) and only_colour(image):
            yield from questions_about_both(video, image, rng)


def _groups(model: nn.Module, heads: nn.Module, stage: Stage) -> list[dict]:
    """Group the parameters by their peak learning rate, and by whether they decay; vectors do not."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in [*model.named_parameters(), *heads.named_parameters()]:
        key = stage.tower_rate if "tower" in name else stage.rate, 0.05 if parameter.ndim >= 2 else 0.0
        groups.setdefault(key, []).append(parameter)
    return [{"params": params, "peak": peak, "weight_decay": decay} for (peak, decay), params in groups.items()]


def _schedule(step: int, steps: int, warmup: int = 100) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.98 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--workers", type=int, default=2, help="number of processes that draw")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainer = Trainer(args.work, args.workers, device)
    trainer.run()
    trainer.write_checkpoint(args.checkpoint)
    # Without the state, the next run starts over.
    trainer.state_path.unlink()


if __name__ == "__main__":
    main()
