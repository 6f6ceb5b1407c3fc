"""Declares the packages; `vllm_videollava/kernels` is a link to `kernels`. pyproject.toml has the rest.

The folder must not be a package of its own, because a top-level `kernels` would
hide Hugging Face's package of that name from transformers and vLLM.
"""

from setuptools import find_packages, setup

setup(packages=["vllm_videollava.kernels", *find_packages(include=["vllm_videollava", "vllm_videollava.*"])])
