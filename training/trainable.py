"""A trainable Video-LLaVA for both formats: frozen towers, a projector, and transformers' LLaMA with a LoRA adapter."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.activations import ACT2FN

from training.batches import NOT_LEARNT, Batch
from training.model import Tower
from vllm_videollava.checkpoints import config as checkpoint_config
from vllm_videollava.checkpoints.config import VideoLlavaConfig
from vllm_videollava.checkpoints.fine_tune import find_fine_tune
from vllm_videollava.checkpoints.weight_files import INDEXES, check_whole_model, has_whole_model
from vllm_videollava.model.merging import canonical, join_names

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""All linear layers of LLaMA, as in the original."""
DROPOUT = 0.05


class TrainableVideoLlava(nn.Module):
    """The model; its parameters have the package's names, see `vllm_videollava.model.names`.

    LLaMA is bfloat16 on a GPU. What is trained is float32, and so are the towers.

    Args:
        config: the base's config.
        placeholder_ids: the ids that stand for media, by kind.
    """

    def __init__(self, config: VideoLlavaConfig, placeholder_ids: dict[str, int], device: torch.device) -> None:
        super().__init__()
        self.config, self._placeholder_ids = config, placeholder_ids
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        with device:
            self.image_tower = _make_tower(config, config.image_config)
            self.video_tower = _make_tower(config, config.video_config)
            self.multi_modal_projector = Projector(config)
            self.language_model = AutoModelForCausalLM.from_config(config.text_config, dtype=dtype)
        self.requires_grad_(False)

    def add_adapter(self, rank: int, alpha: int) -> PeftModel:
        """Put an adapter on LLaMA that changes nothing yet, and let it and the projector be trained."""
        options = {"r": rank, "lora_alpha": alpha, "lora_dropout": DROPOUT, "target_modules": list(TARGETS)}
        adapter = get_peft_model(self.language_model, LoraConfig(task_type="CAUSAL_LM", **options))
        self.multi_modal_projector.requires_grad_(True)
        if self.device.type == "cuda":
            self.language_model.gradient_checkpointing_enable({"use_reentrant": False})
        return adapter

    @property
    def device(self) -> torch.device:
        return self.language_model.device

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the mean loss of the answers' tokens."""
        learnt = batch.labels != NOT_LEARNT
        logits = self.language_model.lm_head(self.hidden_states(batch)[learnt])
        return F.cross_entropy(logits.float(), batch.labels[learnt])

    def hidden_states(self, batch: Batch) -> torch.Tensor:
        """Return LLaMA's last hidden states `[B, L, D]`."""
        # Padding is on the right, where no other token attends to it, so that no mask is needed.
        return self.language_model.model(inputs_embeds=self._embed(batch), use_cache=False).last_hidden_state

    def _embed(self, batch: Batch) -> torch.Tensor:
        embeddings = self.language_model.get_input_embeddings()(batch.ids)
        for kind, pixels in (("image", batch.images), ("video", batch.videos)):
            if len(pixels):
                features = self.multi_modal_projector(self._see(kind, pixels))
                is_medium = (batch.ids == self._placeholder_ids[kind])[..., None]
                embeddings = embeddings.masked_scatter(is_medium, features.to(embeddings.dtype))
        return embeddings

    @torch.no_grad()
    def _see(self, kind: str, pixels: torch.Tensor) -> torch.Tensor:
        if kind == "video":
            return self.video_tower(pixels.flatten(0, 1))[-1]
        features = self.image_tower(pixels)[-1]
        return features if self.config.image_keeps_cls else features[:, 1:]


class Projector(nn.Module):
    def __init__(self, config: VideoLlavaConfig) -> None:
        super().__init__()
        size, bias = config.text_config.hidden_size, config.projector_bias
        layers: list[nn.Module] = [nn.Linear(config.image_config.hidden_size, size, bias)]
        for _ in range(config.projector_depth - 1):
            layers += [ACT2FN[config.projector_hidden_act], nn.Linear(size, size, bias)]
        self.layers = nn.Sequential(*layers)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.layers(features)


def _make_tower(config: VideoLlavaConfig, tower_config) -> Tower:
    """Make a tower that computes its layers up to the wanted hidden state; the others are left out."""
    layer = config.vision_feature_layer
    count = layer if layer >= 0 else tower_config.num_hidden_layers + 1 + layer
    # A tower never computes its last layer.
    tower = Tower({**tower_config.to_dict(), "num_hidden_layers": count + 1})
    tower.encoder.layers[count] = tower.post_layernorm = nn.Identity()
    return tower


def read_base_config(base: Path) -> VideoLlavaConfig:
    """Read the config of a base, in either format.

    Raises:
        ValueError: the folder does not have a whole Video-LLaVA, or its towers cannot be found.
    """
    if not base.is_dir() or not has_whole_model(str(base)):
        raise ValueError(f"{base} is not a folder with a whole model; download one, and name its folder.")
    values = json.loads((base / "config.json").read_text())
    if find_fine_tune(str(base), values):
        raise ValueError(f"{base} is itself a fine-tune; name a whole model.")
    check_whole_model(base)
    checkpoint_config.register()
    config = AutoConfig.from_pretrained(base)
    if not isinstance(config, VideoLlavaConfig):
        raise ValueError(f"{base} has a model of the type {config.model_type!r}; it must be a Video-LLaVA.")
    if config.tower_fault:
        raise ValueError(config.tower_fault)
    return config


def load_model(
    base: Path, config: VideoLlavaConfig, placeholder_ids: dict[str, int], device: torch.device
) -> TrainableVideoLlava:
    """Build a model with a base's weights; see `TrainableVideoLlava`.

    Raises:
        ValueError: a tensor is missing or has a wrong shape. The sentence names it.
    """
    model = TrainableVideoLlava(config, placeholder_ids, device)
    state = model.state_dict()
    missing = set(state)
    _fill(state, read_tensors(base), missing)
    for tower, source in (("image_tower", config.image_tower_source), ("video_tower", config.video_tower_source)):
        if source and any(name.startswith(f"{tower}.") for name in missing):
            if not Path(source).is_dir():
                raise ValueError(f"{base} comes without its {tower}; download {source}, and name its folder there.")
            _fill(state, ((f"{tower}.{name}", tensor) for name, tensor in read_tensors(Path(source))), missing)
    if missing:
        raise ValueError(f"The base lacks tensors that this model needs: {join_names(missing)}.")
    return model


@torch.no_grad()
def _fill(state: dict[str, torch.Tensor], tensors: Iterator[tuple[str, torch.Tensor]], missing: set[str]) -> None:
    for name, tensor in tensors:
        known = canonical(name)
        if known not in state:
            continue
        if state[known].shape != tensor.shape:
            raise ValueError(
                f"The base's tensor {name} has shape {list(tensor.shape)}; it must be {list(state[known].shape)}."
            )
        state[known].copy_(tensor)
        missing.discard(known)


def read_tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a whole model, whether safetensors or `.bin`, in one file or in several."""
    for path in _weight_files(folder):
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118
                    yield name, file.get_tensor(name)
        else:
            yield from torch.load(path, map_location="cpu", mmap=True, weights_only=True).items()


def _weight_files(folder: Path) -> list[Path]:
    for index in INDEXES:
        if (folder / index).exists():
            return [
                folder / name for name in sorted({*json.loads((folder / index).read_text())["weight_map"].values()})
            ]
    names = ("model.safetensors", "pytorch_model.bin")
    return [folder / name for name in names if (folder / name).exists()][:1]
