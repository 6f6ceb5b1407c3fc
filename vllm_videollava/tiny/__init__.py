"""A tiny trained Video-LLaVA and the small world that it knows: its checkpoint, and a generator of clips."""
