"""A trainable Video-LLaVA for both formats: frozen towers, a projector, and transformers' LLaMA with a LoRA adapter."""

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.activations import ACT2FN

from training.batches import NOT_LEARNT, Batch
from training.model import Tower
from vllm_videollava.checkpoints.config import VideoLlavaConfig
from vllm_videollava.checkpoints.fine_tune import find_fine_tune
from vllm_videollava.conversion.completeness import select
from vllm_videollava.conversion.source import open_model, read_config

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""All linear layers of LLaMA, as in the original."""
DROPOUT = 0.05


class TrainableVideoLlava(nn.Module):
    """The model; its parameters have the package's names, see `vllm_videollava.tensors.names`.

    LLaMA is bfloat16 on a GPU. What is trained is float32, and so are the towers.

    Attributes:
        stored_dtype: type in which the base has its projector.

    Args:
        config: the base's config.
        placeholder_ids: the ids that stand for media, by kind.
    """

    def __init__(self, config: VideoLlavaConfig, placeholder_ids: dict[str, int], device: torch.device) -> None:
        super().__init__()
        self.config, self._placeholder_ids = config, placeholder_ids
        self.stored_dtype = torch.float32
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        with device:
            self.image_tower = _make_tower(config, config.image_config)
            self.video_tower = _make_tower(config, config.video_config)
            self.multi_modal_projector = Projector(config)
            # Of the two fields in transformers' format, the outer one is heeded.
            config.text_config.tie_word_embeddings = config.tie_word_embeddings
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
    count = config.num_computed_layers(tower_config)
    # A tower never computes its last layer.
    tower = Tower({**tower_config.to_dict(), "num_hidden_layers": count + 1})
    tower.encoder.layers[count] = tower.post_layernorm = nn.Identity()
    return tower


def read_base_config(base: str) -> VideoLlavaConfig:
    """Read the config of a base, in either format.

    Raises:
        ValueError: the folder or repository has no whole Video-LLaVA.
    """
    config = read_config(base)
    if find_fine_tune(base, config.original_values or {}):
        raise ValueError(f"{base} is itself a fine-tune; make it a whole model with vllm-videollava convert.")
    return config


@torch.no_grad()
def load_model(
    base: str, config: VideoLlavaConfig, placeholder_ids: dict[str, int], device: torch.device
) -> TrainableVideoLlava:
    """Build a model with a base's weights; see `TrainableVideoLlava`.

    Raises:
        ValueError: a tensor is missing, unexpected or misshapen. The sentence names it.
    """
    model = TrainableVideoLlava(config, placeholder_ids, device)
    stored = select(open_model(base, config), config)
    model.stored_dtype = stored["multi_modal_projector.layers.0.weight"].spec.dtype
    for name, value in model.state_dict().items():
        # Tied embeddings have two names, of which one is stored.
        if name in stored:
            value.copy_(stored[name].read())
    return model
