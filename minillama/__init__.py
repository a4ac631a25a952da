"""minillama: a small LLaMA and its whole RLHF pipeline, written from scratch."""

import os
from pathlib import Path

__version__ = "0.1.0"

# PyTorch's threads wait for each other after every operation. Awake, they take the
# cores from other programs and lose their own turn, which can cost a factor of forty.
# PyTorch reads this when it is loaded, so it is set before that.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# The text of every module as it is before any of them is imported; `minillama.sources`
# reads it. An edit made later belongs to the next process, which imports it.
TEXTS = {
    path.stem: path.read_text(encoding="utf-8")
    for path in Path(__file__).parent.glob("*.py")
}
