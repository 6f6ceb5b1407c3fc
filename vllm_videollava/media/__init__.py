"""From a URL, a path or an array to decoded pixels."""
