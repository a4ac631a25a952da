"""How fast is it? Ours against transformers: the same sizes, in turns; medians.

    make bench

Generation at batch 64 and training steps, each in tokens per second. A loaded machine
slows both sides; the ratio of the two is what counts. Nothing here is a test: no time
is ever asserted.
"""

import statistics
import time

import torch
import torch.nn.functional as F
import transformers
from test_model import transplant

from minillama.generate import generate
from minillama.model import Llama, LlamaConfig
from minillama.stages import Settings

BATCH, PROMPT, NEW, LENGTH, REPEATS = 64, 12, 64, 40, 7


def course_model():
    """Return the course's configuration with random weights."""
    s = Settings()
    return Llama(
        LlamaConfig(
            s.vocab_size,
            s.dim,
            s.n_layers,
            s.n_heads,
            s.n_kv_heads,
            s.ffn_dim,
            s.max_seq_len,
        ),
        torch.Generator().manual_seed(0),
    )


def training_step(model, logits_of, ids):
    """Return a function that takes one step of AdamW on the next-token loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step():
        optimizer.zero_grad()
        F.cross_entropy(
            logits_of(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
        ).backward()
        optimizer.step()

    return step


def medians(calls):
    """Return the median seconds of each call, taken in turns after one warm-up."""
    times = [[] for _ in calls]
    for repeat in range(REPEATS + 1):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call()
            times[i] += [time.perf_counter() - start] if repeat else []
    return [statistics.median(t) for t in times]


def main():
    """Print the table."""
    ours = course_model()
    theirs = transplant(ours)
    ids = torch.randint(
        6,
        ours.config.vocab_size,
        (BATCH, LENGTH),
        generator=torch.Generator().manual_seed(1),
    )
    prompts = ids[:, :PROMPT]
    options = dict(
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        do_sample=True,
        top_k=0,
        eos_token_id=None,
        pad_token_id=0,
    )
    generation = medians(
        [
            lambda: generate(ours, prompts.tolist(), NEW, eos_id=None),
            lambda: theirs.generate(
                prompts, attention_mask=torch.ones_like(prompts), **options
            ),
        ]
    )
    training = medians(
        [
            training_step(ours, ours, ids),
            training_step(theirs, lambda ids: theirs(ids).logits, ids),
        ]
    )
    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{torch.get_num_threads()} threads"
    )
    print(f"{'tokens per second':32}{'minillama':>12}{'transformers':>14}{'ratio':>8}")
    rows = (
        (f"generation, batch {BATCH}", BATCH * NEW, generation),
        (f"training, batch {BATCH} x {LENGTH}", BATCH * LENGTH, training),
    )
    for label, tokens, (mine, other) in rows:
        print(
            f"{label:32}{tokens / mine:12.0f}{tokens / other:14.0f}{other / mine:8.2f}"
        )


if __name__ == "__main__":
    main()
