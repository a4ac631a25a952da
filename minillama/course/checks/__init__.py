"""One check per taught definition: `check.whiten(whiten)` tries cases on it.

A check is a generator of cases (claim, what came, what was expected, hint), each worked
out by hand, from a definition by a slower route, or from a property; none calls the
package's own version of what it checks. It prints one line if all cases hold, and
raises AssertionError at the first that does not. What an implementation raises by
itself (NotImplementedError, for one) passes through.
Left out: points and grades, and any check of speed.
"""

from minillama.course.checks.lesson_01_tokens import (  # noqa: F401
    bigram_logprobs,
    count_bigrams,
    count_pairs,
    decode_response,
    encode_prompt,
    encode_response,
    merge,
    table_nats,
    train_tokenizer,
    unigram_logprobs,
)
from minillama.course.checks.lesson_02_blocks import (  # noqa: F401
    feed_forward,
    one_token,
    one_token_floor,
    rms_norm,
)
from minillama.course.checks.lesson_03_attention import (  # noqa: F401
    attend,
    attention,
    attention_bias,
    attention_only,
    rope_cos_sin,
    rotate,
    token_positions,
)
from minillama.course.checks.lesson_04_llama import (  # noqa: F401
    block,
    generate,
    kv_cache,
    llama,
    pick,
    sample,
    tiny_cache,
    top_p_filter,
)
from minillama.course.checks.lesson_05_pretrain import (  # noqa: F401
    lm_loss,
    stepper,
    token_logprobs,
    warmup_cosine,
)
from minillama.course.checks.lesson_06_sft import dialogue_example, pad_examples  # noqa: F401
from minillama.course.checks.lesson_07_preferences import (  # noqa: F401
    annotator,
    bayes_ceiling,
    expected_accuracy,
    fit_strengths,
    sigmoid,
    strength_errors,
)
from minillama.course.checks.lesson_08_reward_head import (  # noqa: F401
    last_token,
    pool_mean,
    reward_model,
)
from minillama.course.checks.lesson_09_bradley_terry import (  # noqa: F401
    bradley_terry_loss,
    pair_example,
    pair_scores,
)
from minillama.course.checks.lesson_10_margin import (  # noqa: F401
    margin_minimiser,
    margin_slope,
    outcome_chances,
)
from minillama.course.checks.lesson_11_lm_regulariser import (  # noqa: F401
    chosen_chance,
    chosen_lm_loss,
)
from minillama.course.checks.lesson_12_audit import (  # noqa: F401
    brier_floor,
    brier_score,
    length_balanced,
    length_only_accuracy,
)
from minillama.course.checks.lesson_13_two_rewards import (  # noqa: F401
    centring_loss,
    safety_label_loss,
    score_normalisation,
    select_reward,
)
from minillama.course.checks.lesson_14_policy_gradient import (  # noqa: F401
    gradient_variance,
    leave_one_out,
    reinforce_loss,
    rewards_to_go,
)
from minillama.course.checks.lesson_15_whiten import logit, masked_mean, whiten  # noqa: F401
from minillama.course.checks.lesson_16_kl_reward import (  # noqa: F401
    exact_kl,
    kl_estimate,
    kl_penalised_rewards,
    objective,
    optimal_policy,
)
from minillama.course.checks.lesson_17_gae import exact_values, gae, value_model  # noqa: F401
from minillama.course.checks.lesson_18_ppo_loss import policy_loss, value_loss  # noqa: F401
from minillama.course.checks.lesson_19_ppo import ppo_step, response_logprobs  # noqa: F401
from minillama.course.checks.lesson_20_overoptimisation import (  # noqa: F401
    best_of_n_mean,
    best_of_n_policy,
)
from minillama.course.checks.lesson_21_direct import (  # noqa: F401
    dpo_loss,
    implicit_reward,
    ipo_loss,
    kto_loss,
    mismatched_kl,
    pair_logprobs,
)
from minillama.course.checks.lesson_22_grpo import (  # noqa: F401
    group_advantages,
    grpo_loss,
    kl_loss,
    token_weights,
)
from minillama.course.checks.lesson_23_off_policy import (  # noqa: F401
    effective_sample_size,
    importance_weights,
    sampling_logprobs,
    squared_error,
)
from minillama.course.checks.lesson_24_process_reward import (  # noqa: F401
    answer_scores,
    step_labels,
    step_loss,
    step_targets,
    yes_no_scores,
)
from minillama.course.checks.lesson_25_honest_numbers import (  # noqa: F401
    auc,
    bootstrap_interval,
    intraclass_correlation,
    roc_curve,
    wilson_interval,
)
from minillama.course.checks.lesson_26_real_models import (  # noqa: F401
    encode_turns,
    llama3_scaling,
    lora_linear,
)
from minillama.course.checks.lesson_27_scaling import (  # noqa: F401
    attainable,
    flops_per_token,
    saved_bytes,
    state_bytes,
)
