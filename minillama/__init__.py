"""minillama: a small LLaMA and its whole RLHF pipeline, written from scratch."""

import os

__version__ = "0.1.0"

# PyTorch's threads wait for each other after every operation. Awake, they take the
# cores from other programs and lose their own turn, which can cost a factor of forty.
# PyTorch reads this when it is loaded, so it is set before that.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
