"""minillama: a small LLaMA and its whole RLHF pipeline, written from scratch."""

import os
from pathlib import Path

__version__ = "0.1.0"

# PyTorch's threads wait for each other after every operation. Awake, they take the
# cores from other programs and lose their own turn, which can cost a factor of forty.
# Asleep at once, they wake so late that two are no faster than one. So they look 3,000
# times, some microseconds, and then sleep. PyTorch reads this when it is loaded.
if os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE") == "PASSIVE":
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")

# The text of every module as it is before any of them is imported; `minillama.sources`
# reads it. An edit made later belongs to the next process, which imports it.
TEXTS = {
    path.stem: path.read_text(encoding="utf-8")
    for path in Path(__file__).parent.glob("*.py")
}
