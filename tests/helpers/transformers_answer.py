"""What transformers' model answers."""

from typing import Any

import torch
from transformers import VideoLlavaForConditionalGeneration


def greedy_logits(model: VideoLlavaForConditionalGeneration, steps: int, **inputs: Any) -> torch.Tensor:
    """Return the logits `[steps, vocabulary]` of a greedy answer to one prompt."""
    output = model.generate(
        **inputs,
        max_new_tokens=steps,
        min_new_tokens=steps,
        do_sample=False,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return torch.cat(output.logits)
