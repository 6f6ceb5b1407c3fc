"""A whole request to the engine's input: rendered, checked, or refused."""
