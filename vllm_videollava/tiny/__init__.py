"""A tiny trained Video-LLaVA and the small world that it knows: the checkpoint and the generator of clips."""
