"""Knows the tensors of checkpoints: their names, shapes and files, and what becomes of a fine-tune's in its base."""
