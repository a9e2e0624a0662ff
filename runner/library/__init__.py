"""The models there are: where they lie, what they are by their headers, and which of them a recipe names."""
