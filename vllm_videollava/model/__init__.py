"""Token ids and pixels to logits: processor, towers, projector, LLaMA, and loading their weights."""
