"""One check per taught definition: `check.whiten(whiten)` tries cases on it.

A check is a generator of cases (claim, what came, what was expected, hint), each worked
out by hand, from a definition by a slower route, or from a property; none calls the
package's own version of what it checks. It prints one line if all cases hold, and
raises AssertionError at the first that does not. What an implementation raises by
itself (NotImplementedError, for one) passes through.
Left out: points and grades, and any check of speed.
"""

from minillama.course.checks.language import (  # noqa: F401
    attend,
    attention,
    attention_bias,
    attention_only,
    block,
    decode_response,
    dialogue_example,
    encode_prompt,
    encode_response,
    feed_forward,
    generate,
    kv_cache,
    llama,
    lm_loss,
    pad_examples,
    pick,
    rms_norm,
    rope_cos_sin,
    rotate,
    sample,
    stepper,
    token_logprobs,
    token_positions,
    top_p_filter,
    train_tokenizer,
    warmup_cosine,
)
from minillama.course.checks.policy import (  # noqa: F401
    best_of_n_mean,
    best_of_n_policy,
    exact_kl,
    exact_values,
    gae,
    kl_estimate,
    kl_penalised_rewards,
    logit,
    masked_mean,
    objective,
    optimal_policy,
    policy_loss,
    ppo_step,
    response_logprobs,
    value_loss,
    value_model,
    whiten,
)
from minillama.course.checks.reward import (  # noqa: F401
    annotator,
    bayes_ceiling,
    bradley_terry_loss,
    brier_floor,
    brier_score,
    centring_loss,
    chosen_lm_loss,
    expected_accuracy,
    last_token,
    length_balanced,
    length_only_accuracy,
    margin_minimiser,
    margin_slope,
    outcome_chances,
    pair_example,
    pair_scores,
    pool_mean,
    reward_model,
    safety_label_loss,
    score_normalisation,
    select_reward,
    sigmoid,
)
