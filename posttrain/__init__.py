"""posttrain: teach small language models from feedback, and show honestly whether it worked."""

__version__ = "0.1.0"
