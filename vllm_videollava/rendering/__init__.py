"""Turns a whole request into the engine's input: renders it, checks it, or refuses it."""
