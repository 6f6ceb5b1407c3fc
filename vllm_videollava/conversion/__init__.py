"""Writes a checkpoint anew as one folder: merged, rounded or quantised, in its own format or in transformers'."""
