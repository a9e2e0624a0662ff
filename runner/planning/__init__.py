"""From a resolved recipe to its plan."""
