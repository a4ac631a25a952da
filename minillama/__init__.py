"""minillama: a small LLaMA and its whole RLHF pipeline, written from scratch."""

__version__ = "0.1.0"
