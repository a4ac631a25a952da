"""The whole run in miniature, and its numbers worked out by hand.

Through the command line, without a network, the same twice, stopped when it must.
"""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from minillama import pipeline, stages, world, writers
from minillama.__main__ import main
from minillama.data import pair_example
from minillama.optim import TrainingDiverged

EGG, BIKE = world.find_prompt("boil an egg"), world.find_prompt("steal a bike")
GOOD, RUDE = world.TASKS["boil an egg"][0], world.RUDE[0]
REFUSAL, RISKY = world.REFUSALS[0], world.RISKY[0]


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("MINILLAMA_ARTIFACTS", str(tmp_path / "store"))
    return tmp_path


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Quick stages, built once, for tests that change nothing in them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINILLAMA_ARTIFACTS", str(tmp_path_factory.mktemp("quick")))
        built = stages.Stages(stages.QUICK)
        built.build_all()
        yield built


def quick_run(out, capsys, *arguments):
    main(["run", "--quick", "--device", "cpu", "--out", str(out), *arguments])
    return json.loads((out / "report.json").read_text()), capsys.readouterr().out


# ------------------------------------------------------------------------ the whole run


def test_run_and_ask_offline(store, no_network, capsys):
    report, printed = quick_run(store / "a", capsys)
    assert set(report) == {
        "helpfulness",
        "refusal",
        "risky_advice",
        "win_rate",
        "win_rate_over_greedy",
        "kl",
        "least_kl",
        "reward_model",
        "sampled",
        "seconds",
        "resumed",
        "peak_rss_mb",
        "seed",
        "device",
    }
    for name in ("helpfulness", "refusal", "risky_advice"):
        assert list(report[name]) == [
            "demonstrators",
            "before",
            "before_greedy",
            "before_best",
            "before_best_temperature",
            "after",
            "after_greedy",
        ]
        assert all(map(math.isfinite, report[name].values()))
    for kind in ("helpfulness", "safety"):
        scored = report["reward_model"][kind]
        assert 0.3 < scored["accuracy"] <= scored["ceiling"] < 1
    names = {"tokenizer", "base", "sft", "helpfulness", "safety", "policy"}
    assert {*names, "report", "total"} <= set(report["seconds"])
    assert 0 <= report["win_rate"] <= 1
    assert report["seed"] == 0 and report["device"] == "cpu"
    assert report["sampled"] == {"answers": 1530, "prompts": 510, "temperature": 1.0}
    assert report["resumed"] == []
    assert (store / "a/learning_curves.png").read_bytes().startswith(b"\x89PNG")
    assert "win rate" in printed and printed.count("  before: ") == 5
    main(["ask", "--quick", "--device", "cpu", "How do I boil an egg?"])
    answered = capsys.readouterr().out
    assert all(
        words in answered
        for words in ("before PPO", "after PPO", "R_s", "gold helpfulness")
    ), answered
    again, _ = quick_run(store / "b", capsys)
    other, _ = quick_run(store / "c", capsys, "--seed", "1")
    for each in (report, again, other):
        del each["seconds"], each["peak_rss_mb"]
    assert again == report and other != report


def test_an_interrupted_run_goes_on_at_its_last_finished_stage(
    store, monkeypatch, capsys
):
    """Stopped while SFT trains: tokenizer and base are taken over, the rest is built.

    A run that was finished is built anew, whole.
    """
    monkeypatch.setattr(pipeline, "ANSWERS_PER_PROMPT", 1)
    train_lm, calls = stages.train_lm, []

    def interrupted(model, examples, settings, *more):
        calls.append(settings)
        if settings == stages.QUICK.sft and len(calls) == 2:
            raise KeyboardInterrupt
        return train_lm(model, examples, settings, *more)

    monkeypatch.setattr(stages, "train_lm", interrupted)
    with pytest.raises(SystemExit, match="130"):
        quick_run(store / "a", capsys)
    assert "the same command goes on" in capsys.readouterr().err
    assert not (store / "a/report.json").exists()
    report, printed = quick_run(store / "a", capsys)
    assert set(report["resumed"]) == {"tokenizer", "base"}
    assert "taken over from an interrupted run: tokenizer, base" in printed
    assert calls == [stages.QUICK.base, stages.QUICK.sft, stages.QUICK.sft]
    again, _ = quick_run(store / "b", capsys)
    assert again["resumed"] == [] and len(calls) == 5
    for name in ("kl", "win_rate", "helpfulness", "reward_model"):
        assert again[name] == report[name]


def test_a_diverging_run_keeps_its_last_good_weights(store, capsys):
    broken = replace(stages.QUICK, base=replace(stages.QUICK.base, lr=math.inf))
    with pytest.raises(TrainingDiverged, match="step 0: weights .*batch of examples"):
        pipeline.run(broken, store / "out")
    weights = load_file(store / "out/last_good.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())
    assert "embed_tokens.weight" in weights
    assert "out/last_good.safetensors" in capsys.readouterr().err
    assert not list((store / "store").glob("base-*.safetensors"))


class Finished:
    """Stages that are built: what `run` does with them, and whether it finishes."""

    def __init__(self, quick):
        self.quick, self.resumed, self.finished = quick, ["base"], False
        self.seconds = dict.fromkeys(["base", "policy"], 1.0)
        self.notes = quick.notes

    def build_all(self):
        pass

    def finish(self):
        self.finished = True


REPORT = {
    name: dict(
        zip(
            (
                "demonstrators",
                "before",
                "before_greedy",
                "before_best",
                "before_best_temperature",
                "after",
                "after_greedy",
            ),
            numbers,
            strict=True,
        )
    )
    for name, numbers in {
        "helpfulness": (0.5, 0.25, 0.375, 0.625, 0.5, 0.875, 1.0),
        "refusal": (0.25, 0.5, 0.0, 0.5, 1.0, 1.0, 1.0),
        "risky_advice": (0.375, 0.125, 0.75, 0.125, 1.0, 0.0, 0.0),
    }.items()
} | {
    "win_rate": 0.75,
    "win_rate_over_greedy": 0.875,
    "kl": 2.25,
    "least_kl": 3.5,
    "reward_model": {
        "helpfulness": {"accuracy": 0.8, "ceiling": 0.9},
        "safety": {"accuracy": 0.6, "ceiling": 0.8},
    },
}


@pytest.fixture
def built(quick, monkeypatch):
    """`run` without training and judging: (stages, what is judged)."""
    made = Finished(quick)

    def stages_of(settings, rebuild):
        assert rebuild
        return made

    def evaluate(given, prompts):
        assert given is made and not made.finished
        assert prompts == world.held_out_prompts() * 3
        return dict(REPORT), ["yes"] * len(prompts), ["no"] * len(prompts)

    monkeypatch.setattr(pipeline, "Stages", stages_of)
    monkeypatch.setattr(pipeline, "evaluate", evaluate)
    return made


def test_run_prints_writes_and_finishes(built, tmp_path, capsys):
    report = pipeline.run(stages.QUICK, tmp_path / "deep/out")
    assert json.loads((tmp_path / "deep/out/report.json").read_text()) == report
    printed = capsys.readouterr().out
    assert pipeline.table(report) in printed
    assert "taken over from an interrupted run: base" in printed
    assert built.finished and report["resumed"] == ["base"]
    assert report["seconds"]["base"] == 1.0
    assert 0 <= report["seconds"]["report"] <= report["seconds"]["total"] < 60
    assert 10 < report["peak_rss_mb"] < 100_000


@pytest.mark.parametrize("name", ["report.json", "learning_curves.png"])
def test_a_full_disk_leaves_the_table_and_says_so(
    name, built, tmp_path, capsys, monkeypatch
):
    """A folder in the file's place stands for the full disk: both are an OSError."""
    (tmp_path / name).mkdir()
    with pytest.raises(SystemExit) as left:
        main(["run", "--quick", "--device", "cpu", "--out", str(tmp_path)])
    told = capsys.readouterr()
    assert left.value.code == 1 and not built.finished
    assert "win rate over the SFT policy" in told.out
    assert len(told.err.strip().split("\n")) == 1 and name in told.err


def test_nan_never_gets_into_a_report(built, tmp_path, monkeypatch):
    nan = {**REPORT, "kl": math.nan}
    monkeypatch.setattr(
        pipeline, "evaluate", lambda s, p: (nan, ["y"] * 1530, ["n"] * 1530)
    )
    with pytest.raises(ValueError, match="not JSON compliant"):
        pipeline.run(stages.QUICK, tmp_path)
    assert not (tmp_path / "report.json").exists()


# ------------------------------------------------------------------------------ numbers


def test_wins_by_hand():
    # A good step against a rude sentence, the reverse, a refusal against no answer: two
    # of three; with a tie in place of the first, 0.5 + 0 + 1 of three.
    prompts = [EGG, EGG, BIKE]
    assert pipeline.wins(prompts, [GOOD, RUDE, REFUSAL], [RUDE, GOOD, GOOD]) == (
        pytest.approx(2 / 3)
    )
    assert pipeline.wins(prompts, [GOOD, RUDE, REFUSAL], [GOOD, GOOD, GOOD]) == (
        pytest.approx(1.5 / 3)
    )


def test_kl_per_answer_keeps_no_graph(quick, monkeypatch):
    """A graph over a batch of 128 answers took 290 MB."""
    _, rollouts = pipeline.sample_answers(
        quick.policy, quick.tokenizer, world.held_out_prompts()[:2], quick.settings, "x"
    )
    plain, tracked = pipeline.response_logprobs, []

    def watched(*arguments):
        logprobs = plain(*arguments)
        tracked.append(logprobs.requires_grad)
        return logprobs

    monkeypatch.setattr(pipeline, "response_logprobs", watched)
    pipeline.kl_per_answer(quick.policy, quick.sft, rollouts)
    assert tracked == [False]


def test_kl_per_answer_is_the_mean_of_the_log_ratios_sums(quick):
    """Against one answer at a time, without batches, masks or fast paths."""
    settings = quick.settings
    prompts = world.held_out_prompts()[:5]
    _, rollouts = pipeline.sample_answers(
        quick.policy, quick.tokenizer, prompts, settings, "a test"
    )
    total = 0.0
    for rollout in rollouts:
        for ids, mask, counts in zip(
            rollout.ids, rollout.mask, rollout.response_mask, strict=True
        ):
            alone, counts = ids[mask][None], counts[mask][1:]
            with torch.no_grad():
                logprobs = [
                    model(alone)[0, :-1].log_softmax(-1)[
                        torch.arange(alone.shape[1] - 1), alone[0, 1:]
                    ]
                    for model in (quick.policy, quick.sft)
                ]
            total += (logprobs[0] - logprobs[1])[counts].sum().item()
    measured = pipeline.kl_per_answer(quick.policy, quick.sft, rollouts)
    assert measured == pytest.approx(total / 5, abs=1e-4) and measured != 0
    assert pipeline.kl_per_answer(quick.policy, quick.policy, rollouts) == (
        pytest.approx(0, abs=1e-4)
    )


def test_sample_answers_takes_every_prompt_once_in_order(quick, monkeypatch):
    """Five prompts in batches of two: 2, 2, 1; another purpose, other answers."""
    monkeypatch.setattr(pipeline, "BATCH", 2)
    prompts = world.held_out_prompts()[:5]
    given = (quick.policy, quick.tokenizer, prompts, quick.settings)
    texts, rollouts = pipeline.sample_answers(*given, "one")
    assert [len(rollout.ids) for rollout in rollouts] == [2, 2, 1] and len(texts) == 5
    questions = [
        quick.tokenizer.decode(ids[mask & ~counts].tolist())
        for r in rollouts
        for ids, mask, counts in zip(r.ids, r.mask, r.response_mask, strict=True)
    ]
    for prompt, question in zip(prompts, questions, strict=True):
        assert world.normalise(prompt.text) in world.normalise(question)
    # A policy of a few steps hardly ever ends an answer: some fill all the room.
    longest = max(rollout.response_mask.sum(1).max() for rollout in rollouts)
    assert longest == quick.settings.ppo.max_new_tokens
    assert pipeline.sample_answers(*given, "one")[0] == texts
    assert pipeline.sample_answers(*given, "other")[0] != texts


class Scores:
    """What `score_texts` gives in turn, in place of a model."""

    def __init__(self, monkeypatch, *scores):
        left = list(scores)
        monkeypatch.setattr(pipeline, "score_texts", lambda model, ids: left.pop(0))


def test_reward_model_accuracy_by_hand(quick, monkeypatch):
    """A judge right by the annotators' utilities reaches the ceiling; ties give 1/2."""
    settings = replace(quick.settings, held_out_pairs=50)
    given = (settings, quick.tokenizer, quick.helpfulness, "helpfulness")
    pairs = [
        group[0]
        for group in stages.draw_preferences(
            settings, "helpfulness", "held out", 50, 2, held_out=True
        )
    ]
    annotator = world.ANNOTATORS["helpfulness"]
    utilities = [
        torch.tensor([annotator.utility(pair.prompt, text) for pair, text in texts])
        for texts in (
            [(pair, pair.chosen) for pair in pairs],
            [(pair, pair.rejected) for pair in pairs],
        )
    ]
    judged = []
    monkeypatch.setattr(
        pipeline,
        "pair_example",
        lambda *given: judged.append(given[1]) or pair_example(*given),
    )
    Scores(monkeypatch, *utilities)
    best = pipeline.reward_model_accuracy(*given)
    assert best["accuracy"] == pytest.approx(best["ceiling"]) and best["ceiling"] < 1
    assert judged == pairs
    assert {pair.prompt for pair in judged} <= set(world.held_out_prompts())
    Scores(monkeypatch, *reversed(utilities))
    worst = pipeline.reward_model_accuracy(*given)
    assert worst["accuracy"] == pytest.approx(1 - best["ceiling"])
    Scores(monkeypatch, torch.zeros(50), torch.zeros(50))
    assert pipeline.reward_model_accuracy(*given)["accuracy"] == pytest.approx(0.5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_judge_without_a_number_scores_nothing(bad, quick, monkeypatch):
    settings = replace(quick.settings, held_out_pairs=2)
    Scores(monkeypatch, torch.tensor([0.0, bad]), torch.tensor([0.0, bad]))
    with pytest.raises(ValueError, match="reward_model_accuracy: model must give"):
        pipeline.reward_model_accuracy(
            settings, quick.tokenizer, quick.safety, "safety"
        )


FULL = " ".join(world.TASKS["boil an egg"])


def test_evaluate_puts_each_number_in_its_place(quick, monkeypatch):
    """Before is the SFT policy and after PPO's; the judges judge their own kind.

    Two prompts, each asked twice at temperature 1 and once at the others.
    """
    texts = {  # (is it the SFT policy, temperature) -> answers
        (True, 1.0): [RUDE, GOOD, RUDE, GOOD],
        (True, 0.0): [GOOD, GOOD],
        (True, 0.25): [f"{GOOD} {RISKY}", GOOD],
        (True, 0.5): [FULL, REFUSAL],
        (True, 0.75): [RISKY, GOOD],
        (False, 1.0): [FULL, REFUSAL, GOOD, GOOD],
        (False, 0.0): [FULL, REFUSAL],
    }
    kls, kinds, purposes = [], {}, set()

    def sample_answers(policy, tokenizer, prompts, settings, purpose, temperature):
        assert policy is quick.sft or policy is quick.policy
        purposes.add((policy is quick.sft, purpose))
        said = texts[policy is quick.sft, temperature]
        assert prompts == [EGG, BIKE] * (len(said) // 2)
        return said, (purpose, temperature)

    def reward_model_accuracy(settings, tokenizer, model, kind):
        kinds[kind] = model
        return kind

    monkeypatch.setattr(pipeline, "sample_answers", sample_answers)
    monkeypatch.setattr(pipeline, "kl_per_answer", lambda *x: kls.append(x) or 1.5)
    monkeypatch.setattr(pipeline, "reward_model_accuracy", reward_model_accuracy)
    report, before, after = pipeline.evaluate(quick, [EGG, BIKE] * 2)
    assert purposes == {(True, "answers before"), (False, "answers after")}
    assert kls == [(quick.policy, quick.sft, ("answers after", 1.0))]
    assert kinds == {"helpfulness": quick.helpfulness, "safety": quick.safety}
    assert before == texts[True, 1.0] and after == texts[False, 1.0]
    # A rude sentence is -1, one right step 1, all four 5.5: shares of 5.5.
    told = {name: list(report[name].values())[1:] for name in ("helpfulness",)}
    assert told["helpfulness"] == pytest.approx(
        [-1 / 5.5, 1 / 5.5, 1.0, 0.5, 3.25 / 5.5, 1.0]
    )
    assert list(report["refusal"].values())[1:] == [0.0, 0.0, 1.0, 0.5, 0.5, 1.0]
    # Best is least here; 0 is the first of the temperatures without risky advice.
    assert list(report["risky_advice"].values())[1:] == [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    # Sampled against sampled: three answers better, the last unsafe one alike. Against
    # greedy: the full answer and the refusal are better, the others are alike.
    assert report["win_rate"] == 3.5 / 4 and report["win_rate_over_greedy"] == 0.75
    assert report["kl"] == 1.5
    assert report["least_kl"] == writers.least_kl(writers.SFT_STYLE)
    assert report["reward_model"] == {"helpfulness": "helpfulness", "safety": "safety"}


def test_the_demonstrators_are_judged_by_what_they_write(quick):
    """As `draw_dialogues` writes, three answers a prompt; four standard errors."""
    prompts = world.held_out_prompts()
    at = {0.0: stages.gold_summary([EGG, BIKE], [GOOD, GOOD])}
    at[1.0] = at[0.0]
    report = pipeline.before_ppo(quick.settings, prompts, at)
    unsafe = [p for p in prompts if p.is_safety]
    p = writers.SFT_STYLE.refuse_unsafe
    error = math.sqrt(p * (1 - p) / (3 * len(unsafe)))
    assert abs(report["refusal"]["demonstrators"] - p) < 4 * error
    assert 0.4 < report["helpfulness"]["demonstrators"] < 0.65
    assert report["helpfulness"]["before_best_temperature"] == 0.0


@pytest.mark.parametrize("prompts", [[EGG], [BIKE, BIKE]])
def test_evaluate_needs_both_kinds_of_prompts(prompts, quick):
    with pytest.raises(ValueError, match="evaluate: prompts must be ordinary and"):
        pipeline.evaluate(quick, prompts)


# -------------------------------------------------------------------------------- words


def test_the_table_to_the_letter():
    report = REPORT | {
        "sampled": {"answers": 1530, "prompts": 510, "temperature": 1.0},
        "seconds": {"base": 55.4, "total": 290.0},
        "resumed": ["tokenizer", "base"],
        "peak_rss_mb": 800,
        "seed": 3,
        "device": "cpu",
    }
    assert pipeline.table(report) == (
        "1530 answers to 510 fresh prompts, sampled at temperature 1,\n"
        "and greedy ones, scored by the gold judges\n"
        "\n"
        "                                         helpfulness      refusals"
        "  risky advice\n"
        "the demonstrators                              0.500         0.250"
        "         0.375\n"
        "SFT policy, sampled                            0.250         0.500"
        "         0.125\n"
        "SFT policy, greedy                             0.375         0.000"
        "         0.750\n"
        "SFT policy at its best (temperature)     0.625 (0.5)     0.500 (1)"
        "     0.125 (1)\n"
        "after PPO, sampled                             0.875         1.000"
        "         0.000\n"
        "after PPO, greedy                              1.000         1.000"
        "         0.000\n"
        "\n"
        "win rate over the SFT policy, sampled          0.750\n"
        "win rate over it, greedy                       0.875\n"
        "KL from it, nats per answer                    2.250\n"
        "least KL of a perfect policy                   3.500\n"
        "\n"
        "reward models on fresh pairs                accuracy       ceiling"
        "         share\n"
        "helpfulness                                    0.800         0.900"
        "         0.889\n"
        "safety                                         0.600         0.800"
        "         0.750\n"
        "\n"
        "seconds: base 55, total 290\n"
        "stages taken over from an interrupted run: tokenizer, base\n"
        "peak memory: 800 MB; device: cpu; seed: 3"
    )


def test_side_by_side_spreads_over_the_prompts():
    """Twenty prompts, five shown: numbers 2, 6, 10, 14 and 18."""
    prompts = [replace(EGG, text=f"prompt {i}") for i in range(20)]
    before, after = ([f"{side}{i}" for i in range(20)] for side in ("b", "a"))
    shown = pipeline.side_by_side(prompts, before, after).split("\n\n")
    assert [lines.split("\n")[0] for lines in shown] == [
        f"prompt {i}" for i in (2, 6, 10, 14, 18)
    ]
    assert shown[0].split("\n")[1].startswith("  before: b2  [gold helpfulness")
    assert shown[0].split("\n")[2].startswith("  after:  a2  [gold helpfulness")


def test_gold_scores_in_words():
    assert pipeline.gold_scores(BIKE, REFUSAL) == "[gold safety 0.8 of 1]"
    assert pipeline.gold_scores(EGG, GOOD) == "[gold helpfulness 1.0 of 5.5]"


def test_ask_samples_three_answers_a_policy(quick):
    text = pipeline.ask(quick, EGG.text)
    lines = text.split("\n")
    assert lines[0] == EGG.text and text.count("R_s") == 6
    assert text.count(", sampled at temperature 1:") == 2
    assert text.count("[gold helpfulness ") == 6
    before, after = text.split("\nafter PPO")
    assert "before PPO" in before and len(set(before.split("\n")[3:9:2])) == 3
    assert pipeline.ask(quick, EGG.text) == text
    # The heading says the temperature, so the answers alone are compared.
    cooler = pipeline.ask(quick, EGG.text, 0.5).split("\n")
    assert cooler[2] == "before PPO, sampled at temperature 0.5:"
    assert cooler[3:9:2] != lines[3:9:2]
    assert pipeline.ask(quick, EGG.text, 0.0).count("R_s") == 2
    assert ", greedy:" in pipeline.ask(quick, EGG.text, 0)


def test_ask_puts_each_model_in_its_place(quick, monkeypatch):
    """The SFT policy answers first; R_s is the safety model's, R_h the other's."""
    generate, judges, asked, judging = pipeline.generate, pipeline.Judges, [], []
    monkeypatch.setattr(
        pipeline,
        "generate",
        lambda policy, *given, **named: (
            asked.append(policy) or generate(policy, *given, **named)
        ),
    )
    monkeypatch.setattr(
        pipeline, "Judges", lambda *given: judging.append(given) or judges(*given)
    )
    pipeline.ask(quick, EGG.text)
    assert asked[0] is quick.sft and asked[1] is quick.policy and len(asked) == 2
    assert judging == [(quick.safety, quick.helpfulness)]


def test_ask_knows_its_world(quick):
    first, second, *_ = pipeline.ask(quick, "What is love?", 0).split("\n")
    assert first == "What is love?"
    assert second.startswith("[not a request of this world, which knows 24 tasks")
    assert "boil an egg" in second and "[no gold score]" in (
        pipeline.ask(quick, "What is love?", 0)
    )


@pytest.mark.parametrize(
    "call, kind, message",
    [
        (lambda q: pipeline.ask(q, " "), ValueError, "ask: question must have words"),
        (lambda q: pipeline.ask(q, "x " * 200), ValueError, "at most 136 tokens, got"),
        (lambda q: pipeline.ask(q, None), TypeError, "ask: question must be"),
        (lambda q: pipeline.ask(q, "x", -1), ValueError, "ask: temperature must be"),
        (lambda q: pipeline.ask(q, "x", math.nan), ValueError, "ask: temperature"),
        (lambda q: pipeline.ask("x", "x"), TypeError, "ask: stages must be"),
        (lambda q: pipeline.wins([], [], []), ValueError, "wins: prompts must be"),
        (lambda q: pipeline.wins(["a"], ["b"], ["c"]), TypeError, "wins: prompts"),
        (
            lambda q: pipeline.wins([EGG], ["b"], ["c", "d"]),
            ValueError,
            "wins: baseline_texts must be",
        ),
        (
            lambda q: pipeline.kl_per_answer(q.sft, q.sft, []),
            ValueError,
            "kl_per_answer: rollouts must be",
        ),
        (
            lambda q: pipeline.kl_per_answer(q.safety, q.sft, []),
            TypeError,
            "kl_per_answer: policy must be",
        ),
        (
            lambda q: pipeline.sample_answers(q.sft, q.tokenizer, [], q.settings, "x"),
            ValueError,
            "sample_answers: prompts must be",
        ),
        (
            lambda q: pipeline.reward_model_accuracy(
                q.settings, q.tokenizer, q.safety, "length"
            ),
            ValueError,
            "reward_model_accuracy: kind must be",
        ),
        (lambda q: pipeline.evaluate(q, []), ValueError, "evaluate: prompts must be"),
        (lambda q: pipeline.run(None, "x"), TypeError, "run: settings must be"),
        (lambda q: pipeline.draw_curves([], "x"), ValueError, "draw_curves: history"),
        (
            lambda q: pipeline.side_by_side([EGG], ["a"], ["b"], 2),
            ValueError,
            "side_by_side: count must be",
        ),
        (lambda q: pipeline.gold_scores(EGG, 3), TypeError, "gold_scores: text must"),
    ],
)
def test_bad_input_is_refused_by_name(call, kind, message, quick):
    with pytest.raises(kind, match=message):
        call(quick)
