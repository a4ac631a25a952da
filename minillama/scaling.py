"""What a model costs: FLOPs, bytes moved and bytes held, counted from its sizes.

Nothing here runs a model; lesson 27 and the tests hold each count against one that
runs. Letters are those of model.py: B batch, T tokens, D width, H heads, K key/value
heads, E head size, F feed-forward width, V vocabulary, L layers. A FLOP is one addition
or one multiplication of floating-point numbers; GB are 1e9 bytes.

Sources: FLOPs, Chowdhery et al. 2022 (PaLM, arXiv 2204.02311, appendix B), after Kaplan
et al. 2020 (arXiv 2001.08361, section 2.1), whose N leaves out the vocabulary; the
roofline, Williams et al. 2009 (doi 10.1145/1498765.1498785); activations, Korthikanti
et al. 2022 (arXiv 2205.05198, section 4.1); what is shared out and what is sent,
Rajbhandari et al. 2020 (ZeRO, arXiv 1910.02054, sections 3.1, 5 and 7).

Left out: the FLOPs of norms, softmax, rotations, SiLU and the optimiser (below 1 % of
all from the width of a real model on), attention kernels that never write down the
scores, tensor and pipeline parallelism, the time in which something is sent.
"""

from minillama.contracts import expects


@expects("config: LlamaConfig", "-> int >= 1")
def matmul_weights(config):
    """Return N, the number of weights that every token is multiplied by.

        N = L (2 D H E + 2 D K E + 3 D F) + D V

    All matrices of the blocks and the output matrix, tied or not. The embedding table
    is looked up, not multiplied; norms multiply number by number.
    """
    D, wide = config.dim, config.n_heads * config.head_dim
    narrow = config.n_kv_heads * config.head_dim
    block = 2 * D * wide + 2 * D * narrow + 3 * D * config.ffn_dim
    return config.n_layers * block + D * config.vocab_size


@expects("config: LlamaConfig", "length: int >= 1", "training: flag", "-> int >= 1")
def flops_per_token(config, length, training=True):
    """Return the FLOPs of matrix products per token of texts of T = `length` tokens.

    Counted are products with weights and, in every head, those of a query with T keys
    and of its weights with T values: also those that the mask hides, since `attend`
    computes them. training: with the backward pass, else the forward pass alone.
    Source: Chowdhery et al. 2022 (PaLM), appendix B.
    """
    wide = config.n_heads * config.head_dim
    # 2 N + 4 L H E T: a number is multiplied once and added once
    forward = 2 * matmul_weights(config) + 4 * config.n_layers * wide * length
    # backward: a product for each of the two factors
    return 3 * forward if training else forward


@expects("m, k, n, number_bytes: int >= 1", "-> number > 0")
def matmul_intensity(m, k, n, number_bytes):
    """Return the arithmetic intensity, FLOPs a byte, of (m, k) times (k, n).

        2 m k n / (number_bytes (m k + k n + m n))

    Each factor is read and the product written once, as if a cache held all that is
    needed again. number_bytes: the size of a number, 4 for float32.
    """
    return 2 * m * k * n / (number_bytes * (m * k + k * n + m * n))


@expects("intensity, peak, bandwidth: finite number > 0", "-> number > 0")
def attainable(intensity, peak, bandwidth):
    """Return the roofline: the most FLOPs a second that a machine can do.

    intensity: FLOPs done for each byte moved. peak: FLOPs a second of the arithmetic
    units. bandwidth: bytes a second between memory and them. Source: Williams et al.
    2009.
    """
    return min(peak, intensity * bandwidth)


@expects("config: LlamaConfig", "number_bytes: int >= 1", "-> int >= 1")
def cache_bytes(config, number_bytes):
    """Return the bytes of a `KVCache` for one token: 2 L K E numbers, keys and values.

    number_bytes: the size of a number, 2 for bfloat16.
    """
    heads = config.n_kv_heads * config.head_dim
    return 2 * config.n_layers * heads * number_bytes


@expects("config: LlamaConfig", "batch, length: int >= 1", "-> int >= 1")
def saved_bytes(config, batch, length):
    """Return the bytes of activations that `Llama(ids)` keeps for the backward pass.

    Float32, ids (B, T) without mask; what several operations keep counts once. Weights
    and ids are not counted: they are there anyway. Nor are the logits, the result.
    """
    D, H, T = config.dim, config.n_heads, length
    wide, narrow = H * config.head_dim, config.n_kv_heads * config.head_dim
    # two norms; queries, mixtures; keys, values; the MLP; softmax; factors of the norms
    block = 6 * D + 2 * wide + 2 * narrow + 4 * config.ffn_dim + H * T + 2
    # at the end the last norm, and once for all texts and blocks cosines and sines
    numbers = batch * T * (config.n_layers * block + 3 * D + 1) + T * config.head_dim
    return 4 * numbers


@expects("parameters, processes: int >= 1", "stage: int in [0, 3]", "-> number > 0")
def state_bytes(parameters, processes=1, stage=0):
    """Return the bytes of weights, gradients and optimiser state on each process.

    Adam in mixed precision holds bfloat16 weights, bfloat16 gradients, and as state the
    weights again and two moments in float32. A stage of ZeRO says what the processes
    share out evenly instead of copying: 1 the state, 2 also the gradients, 3 the
    weights as well. DDP is stage 0, FSDP stage 3. Source: Rajbhandari et al. 2020,
    section 3.1, with float16 for bfloat16.
    """
    weights, gradients, state = 2 * parameters, 2 * parameters, 12 * parameters
    if stage >= 1:
        state /= processes
    if stage >= 2:
        gradients /= processes
    if stage >= 3:
        weights /= processes
    return weights + gradients + state


@expects(
    "parameters, processes, number_bytes: int >= 1",
    'engine: "ddp" or "fsdp"',
    "-> number >= 0",
)
def bytes_sent(parameters, processes, engine, number_bytes):
    """Return the bytes that each process sends in one training step.

        ddp: 2 (p - 1) / p * all       fsdp: 3 (p - 1) / p * all

    In a ring of p processes each hands on p - 1 of p pieces to spread what all have a
    piece of (all-gather), and as much to sum pieces (reduce-scatter). DDP sums all
    gradients everywhere: one of each. FSDP gathers the weights in the forward pass and
    again in the backward pass, and sums gradients where they belong: three. `all` is
    parameters * number_bytes.
    """
    rounds = {"ddp": 2, "fsdp": 3}[engine]
    return rounds * (processes - 1) / processes * parameters * number_bytes
