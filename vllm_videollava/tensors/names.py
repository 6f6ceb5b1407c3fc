"""The table that maps a checkpoint's tensor names, of any format and version, to this model's names.

Prefixes are tried from top to bottom, each on the result of those before it:

    the original's model.video_tower.video_tower.encoder.layers.0.mlp.fc1.weight
        video_tower.video_tower.encoder.layers.0.mlp.fc1.weight
        video_tower.encoder.layers.0.mlp.fc1.weight
    transformers' model.language_model.layers.0.mlp.up_proj.weight
        language_model.model.layers.0.mlp.up_proj.weight
    transformers' model.multi_modal_projector.linear_2.bias
        multi_modal_projector.linear_2.bias
        multi_modal_projector.layers.2.bias
"""

import re

from vllm.model_executor.models.utils import WeightsMapper

from vllm_videollava.checkpoints.config import VideoLlavaConfig

TENSOR_NAMES = WeightsMapper(
    orig_to_new_prefix={
        # transformers since 4.52
        "model.language_model.": "language_model.model.",
        "model.multi_modal_projector.": "multi_modal_projector.",
        # the original code
        "model.layers.": "language_model.model.layers.",
        "model.embed_tokens.": "language_model.model.embed_tokens.",
        "model.norm.": "language_model.model.norm.",
        "lm_head.": "language_model.lm_head.",
        "model.mm_projector.weight": "multi_modal_projector.layers.0.weight",
        "model.mm_projector.bias": "multi_modal_projector.layers.0.bias",
        "model.mm_projector.": "multi_modal_projector.layers.",
        # both
        "model.image_tower.": "image_tower.",
        "model.video_tower.": "video_tower.",
        "image_tower.image_tower.": "image_tower.",
        "video_tower.video_tower.": "video_tower.",
        # transformers before 5, and the towers' own repositories
        "image_tower.vision_model.": "image_tower.",
        "video_tower.vision_model.": "video_tower.",
        # transformers
        "multi_modal_projector.linear_1.": "multi_modal_projector.layers.0.",
        "multi_modal_projector.linear_2.": "multi_modal_projector.layers.2.",
    }
)

EMBEDDINGS, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"

# Tensors that valid checkpoints may contain but this model does not need, by their names after mapping.
UNUSED = tuple(
    re.compile(pattern)
    for pattern in (
        r".*\.position_ids",
        r".*\.rotary_emb\.inv_freq",
        # The selected hidden state is taken before this norm.
        r"(image|video)_tower\.post_layernorm\..*",
        # The other half of CLIP, which the towers' own repositories include.
        r"(image|video)_tower\.(text_model|text_projection|visual_projection)\..*",
        r"(image|video)_tower\.logit_scale",
    )
)


def is_computed_with(name: str, config: VideoLlavaConfig) -> bool:
    """Return whether the model needs one of its tensors; it stops at the towers' selected layer."""
    if any(pattern.fullmatch(name) for pattern in UNUSED):
        return False
    layer = re.match(r"(image|video)_tower\.encoder\.layers\.(\d+)\.", name)
    return layer is None or int(layer[2]) < config.num_computed_layers(getattr(config, f"{layer[1]}_config"))
