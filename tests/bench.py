"""How fast is it? Ours against transformers: the same sizes, in turns; medians.

    make bench

Generation at batch 64 and training steps, each in tokens per second; on a GPU also a
reward model of Llama 2 7B's layers in bfloat16, as many as fit, beside transformers
with SDPA. A loaded machine slows both sides; the ratio of the two is what counts. No
time is ever asserted; test_bench.py has the arithmetic, and both sides on a CPU.
"""

import math
import statistics
import time
from dataclasses import replace

import torch
import torch.nn.functional as F
import transformers
from test_model import transplant

from minillama.generate import generate
from minillama.model import Llama, LlamaConfig
from minillama.preference_loss import bradley_terry_loss
from minillama.reward_model import RewardModel
from minillama.scaling import flops_per_token, matmul_weights, saved_bytes
from minillama.stages import Settings

BATCH, PROMPT, NEW, LENGTH, REPEATS = 64, 12, 64, 40, 7
# Layers of Llama 2 7B (arXiv 2307.09288); pairs of texts of so many tokens.
LLAMA_7B = LlamaConfig(32000, 4096, 32, 32, 32, 11008, 4096)
PAIRS, TEXT, SPARE = 4, 1024, 0.2  # SPARE: the share of memory left for temporaries


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


# --------------------------------------------------------------------------------------
# A reward model of real layers


def body_flops(config, length):
    """FLOPs of training per token without the output matrix, for both sides alike."""
    return flops_per_token(config, length) - 6 * config.dim * config.vocab_size


def bytes_needed(config, texts, length):
    """Bytes of training a reward model in bfloat16, at most.

    Weights, gradients and Adam's two moments, 8 bytes for each weight of the blocks and
    of the embedding, which has as many as the output matrix that a judge lacks. Of
    activations the float32 count: at these lengths bfloat16 keeps less.
    """
    return 8 * matmul_weights(config) + saved_bytes(config, texts, length)


def layers_that_fit(config, texts, length, room):
    """So many layers, at most those of the config, need no more than `room` bytes."""
    one, two = (
        bytes_needed(replace(config, n_layers=n), texts, length) for n in (1, 2)
    )
    return max(0, min(config.n_layers, 1 + math.floor((room - one) / (two - one))))


def seconds(call, device):
    """The median seconds of a call, after one that warms up."""
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def matmul_peak(device, dtype, size):
    """FLOPs a second of a square product."""
    x = torch.randn(size, size, device=device, dtype=dtype)
    return 2 * size**3 / seconds(lambda: x @ x, device)


def our_judge(config):
    """A `RewardModel` in bfloat16, and a function from ids to its scores."""
    model = RewardModel(Llama(config, torch.Generator().manual_seed(0)))
    model.llama.to(torch.bfloat16)
    return model, model


def their_judge(config):
    """Transformers' reward model with SDPA in bfloat16; from ids to its scores."""
    settings = transformers.LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.dim,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_kv_heads,
        intermediate_size=config.ffn_dim,
        max_position_embeddings=config.max_seq_len,
        num_labels=1,
        pad_token_id=0,
        attn_implementation="sdpa",
    )
    model = transformers.LlamaForSequenceClassification(settings).to(torch.bfloat16)
    return model, lambda ids: model(ids, use_cache=False).logits.squeeze(-1)


def judge_step(model, scores_of, ids):
    """Return a function that takes one step of AdamW on pairs; (2 N, T) ids.

    It returns the loss, nats a pair: the first N texts are the chosen ones.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step():
        optimizer.zero_grad()
        chosen, rejected = scores_of(ids).float().chunk(2)
        loss = bradley_terry_loss(chosen, rejected)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def bench_judges(config, pairs, length, device, peak):
    """Print tokens a second and share of a peak, FLOPs a second, of both sides."""
    shape, tokens = (2 * pairs, length), 2 * pairs * length
    ids = torch.randint(6, config.vocab_size, shape, device=device)
    for name, make in (("minillama", our_judge), ("transformers, SDPA", their_judge)):
        model, scores_of = make(config)
        model.to(device).train()
        speed = tokens / seconds(judge_step(model, scores_of, ids), device)
        share = speed * body_flops(config, length) / peak
        print(f"{name:32}{speed:12.0f} tokens a second, {share:.0%} of the peak")
        del model, scores_of  # the other one needs the room


def main_on_a_gpu():
    """A reward model of as many layers of Llama 2 7B as fit."""
    room = (1 - SPARE) * torch.cuda.mem_get_info()[0]
    layers = layers_that_fit(LLAMA_7B, 2 * PAIRS, TEXT, room)
    peak = matmul_peak("cuda", torch.bfloat16, 8192)
    print(f"{torch.cuda.get_device_name()}, bfloat16 product: {peak / 1e12:.0f} TFLOPs")
    print(f"reward model, {layers} layers of 7B, {2 * PAIRS} texts of {TEXT} tokens")
    config = replace(LLAMA_7B, n_layers=layers)
    bench_judges(config, PAIRS, TEXT, "cuda", peak)


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
    if torch.cuda.is_available():
        main_on_a_gpu()


if __name__ == "__main__":
    main()
