"""Run by test_llava.py: print as JSON the greedy tokens of a genuine LLaVA checkpoint.

python tests/helpers/llava_answer.py FOLDER
"""

import json
import sys

from PIL import Image
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    llm = LLM(sys.argv[1], dtype="float32", enforce_eager=True, max_model_len=512)
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    picture = Image.radial_gradient("L").convert("RGB")
    prompts = [
        {"prompt": "USER: Hi ASSISTANT:"},
        {"prompt": "USER: <image>\nWhat? ASSISTANT:", "multi_modal_data": {"image": picture}},
    ]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    tokens = [[list(output.prompt_token_ids), list(output.outputs[0].token_ids)] for output in outputs]
    print("\n" + json.dumps(tokens))
