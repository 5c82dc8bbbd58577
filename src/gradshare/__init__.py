"""gradshare: gradient-based meta-learning with gradient sharing."""

__version__ = "0.1.0"
