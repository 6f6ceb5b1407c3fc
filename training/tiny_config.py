"""The tiny checkpoint's config, which is that of Video-LLaVA-7B with smaller numbers."""

from training import original_format

IMAGE_TOWER = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "image_size": 98,
    "patch_size": 14,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
}
VIDEO_TOWER = {**IMAGE_TOWER, "add_time_attn": True, "num_frames": 8}
CONFIG = {
    **original_format.CONFIG,
    "mm_hidden_size": IMAGE_TOWER["hidden_size"],
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 768,
    "torch_dtype": "float16",
}
