"""Decodes a file's bytes to pixels, in separate processes; never imports vLLM, torch or transformers."""
