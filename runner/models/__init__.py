"""Models by their headers: recognised, and seen under the names merges know their tensors by."""
