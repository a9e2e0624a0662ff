"""runner merges diffusion models from declarative recipes."""

__version__ = "0.1.0"
