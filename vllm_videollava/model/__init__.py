"""Turns token ids and pixels into logits: processor, towers, projector, LLaMA, and the loading of their weights."""
