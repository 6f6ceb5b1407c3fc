"""Reads the configs in a checkpoint's folder, in both formats: the model's and its towers'."""
