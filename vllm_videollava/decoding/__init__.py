"""A file's bytes to pixels, in processes of their own; never imports vLLM, torch or transformers."""
