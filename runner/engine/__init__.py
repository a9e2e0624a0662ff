"""From a plan to the bytes of its result."""
