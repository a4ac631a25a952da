"""minillama: a small LLaMA and its whole RLHF pipeline, written from scratch."""

import os

__version__ = "0.1.0"

# PyTorch's threads wait for each other after every operation. By default they spin; where another program wants the
# same cores, that can cost a factor of six. PyTorch reads this when it is loaded, so it is set before that.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
