"""Files: reading those of strangers, building ours beside their place, hashing both."""
