"""A tiny trained Video-LLaVA and the small world it knows: the checkpoint, the generator of clips, the demo."""
