"""Starting a server and asking it."""
