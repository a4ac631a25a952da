"""What every committed notebook keeps to; each rule fires on one that breaks it.

A rule is a function from a notebook to the complaints it has. Whether the cells run and
print what is committed is not asked here: nbval does that.
"""

import ast
import copy
import re
import socket
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest
from nbval.plugin import get_sanitize_patterns

from minillama.course import mend, sync, tidy

NOTEBOOKS = sorted(sync.NOTEBOOKS.glob("*.ipynb"))
TAGS = {"exercise", "nbval-ignore-output", *tidy.FOLDED}
PITFALL = "pitfall-"  # and the name of what a cell shows: test_bug_clinic.py
MACHINE_PATH = re.compile(
    r"(?<![\w.)\]])/(home|Users|root|tmp|work|workspace|mnt|opt|var|usr|private|srv)/"
    r"|\b[A-Z]:[\\/]+Users\b"
)
LIVE = re.compile(r"\bclear_output\b|\bdisplay_id\b|\bupdate_display\b")
# no SVG, widget or script
MEDIA = {"text/plain", "text/html", "text/markdown", "text/latex", "image/png"}

# Which notebook teaches which definition: once the notebook exists, the definition must
# stand in it, and in no other.
LESSONS = {
    "01": [
        "count_pairs",
        "merge",
        "Tokenizer",
        "train_tokenizer",
        "encode_prompt",
        "encode_response",
        "decode_response",
        "count_bigrams",
        "unigram_logprobs",
        "bigram_logprobs",
        "table_nats",
    ],
    "02": [
        "RMSNorm",
        "FeedForward",
        "OneToken",
        "one_token_floor",
    ],
    "03": [
        "rope_cos_sin",
        "rotate",
        "token_positions",
        "attention_bias",
        "attend",
        "Attention",
        "AttentionOnly",
    ],
    "04": [
        "LlamaConfig",
        "Block",
        "Llama",
        "draw_weights",
        "positions_and_keys",
        "rotary_table",
        "TinyCache",
        "KVCache",
        "Rollout",
        "generate",
        "sample_responses",
        "pick",
        "sample",
        "top_p_filter",
    ],
    "05": [
        "token_logprobs",
        "lm_loss",
        "warmup_cosine",
        "TrainingDiverged",
        "Stepper",
        "LMSettings",
        "train_lm",
        "evaluate_lm",
    ],
    "06": ["Example", "dialogue_example", "pad_examples"],
    "07": [
        "sigmoid",
        "STRENGTHS",
        "Preference",
        "Annotator",
        "collect_preferences",
        "bayes_ceiling",
        "expected_accuracy",
        "fit_strengths",
        "strength_errors",
    ],
    "08": ["copy_body", "last_token", "pool_mean", "RewardModel", "score_texts"],
    "09": [
        "bradley_terry_loss",
        "PairExample",
        "pair_example",
        "pair_scores",
        "RewardSettings",
        "pair_loss",
        "train_reward_model",
    ],
    "10": [
        "MARGINS",
        "outcome_chances",
        "margin_slope",
        "margin_minimiser",
    ],
    "11": ["chosen_lm_loss", "chosen_chance"],
    "12": [
        "order_blind",
        "topic_blind",
        "SUSPECTS",
        "correlation",
        "agreement",
        "length_only_accuracy",
        "brier_score",
        "brier_floor",
        "length_buckets",
        "FLAWS",
        "spoiled_steps",
        "flawed_answer",
        "adversarial_pairs",
        "accuracy_by_flaw",
        "CHANGES",
        "one_change",
        "changed_pairs",
        "price_list",
        "preferred_words",
        "length_balanced",
        "Audit",
        "audit",
        "score_function",
    ],
    "13": [
        "centring_loss",
        "score_normalisation",
        "safety_label_loss",
        "select_reward",
    ],
    "14": [
        "reinforce_loss",
        "leave_one_out",
        "rewards_to_go",
        "token_states",
        "table_logprobs",
        "answer_gradients",
        "gradient_variance",
        "rises",
    ],
    "15": ["logit", "masked_mean", "whiten"],
    "16": [
        "exact_kl",
        "kl_estimate",
        "kl_penalised_rewards",
        "Responses",
        "enumerate_responses",
        "sequence_token_logprobs",
        "sequence_logprobs",
        "response_kl",
        "exact_gradient",
        "small_policy",
        "objective",
        "optimal_policy",
    ],
    "17": ["gae", "ValueModel", "exact_values"],
    "18": [
        "policy_loss",
        "value_loss",
        "clip_fraction",
        "RisesJudges",
    ],
    "19": [
        "Judges",
        "response_logprobs",
        "response_values",
        "Experience",
        "PPOSettings",
        "collect_experience",
        "ppo_step",
        "train_ppo",
        "summary",
    ],
    "20": ["best_of_n_policy", "best_of_n_bound", "best_of_n_mean"],
    "21": [
        "implicit_reward",
        "dpo_loss",
        "answer_logprobs",
        "pair_logprobs",
        "DirectSettings",
        "train_on_pairs",
        "ipo_loss",
        "kto_loss",
    ],
    "22": [
        "grouped",
        "group_advantages",
        "live_groups",
        "token_weights",
        "log_ratios",
        "grpo_loss",
        "kl_loss",
        "GRPOSettings",
        "Groups",
        "collect_groups",
        "grpo_step",
        "group_summary",
        "train_grpo",
    ],
    "23": [
        "importance_weights",
        "effective_sample_size",
        "squared_error",
        "sampling_logprobs",
    ],
    "24": [
        "step_labels",
        "separators",
        "step_ends",
        "right_futures",
        "search_chance",
        "head_scores",
        "yes_no_scores",
        "step_targets",
        "answer_scores",
        "step_search",
    ],
    "25": [
        "wilson_interval",
        "exact_coverage",
        "bootstrap_interval",
        "intraclass_correlation",
        "prompts_needed",
        "mean_interval",
        "roc_curve",
        "auc",
        "alarm_level",
    ],
    "26": ["Llama3Scaling", "encode_turns", "LoRALinear"],
    "27": [
        "matmul_weights",
        "flops_per_token",
        "matmul_intensity",
        "attainable",
        "cache_bytes",
        "state_bytes",
        "saved_bytes",
        "bytes_sent",
    ],
}


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def place(notebook, cell):
    return f"cell {next(i for i, other in enumerate(notebook.cells) if other is cell)}"


def tags(cell):
    return cell.metadata.get("tags", [])


def texts(cell):
    """Every text among a cell's outputs."""
    for output in cell.outputs:
        data = output.get("data", {})
        yield from (data[kind] for kind in data if kind.startswith("text/"))
        yield from [output.get("text", ""), *output.get("traceback", [])]


def tree(cell):
    """The cell's syntax tree; magics do not parse and have a rule of their own."""
    try:
        return ast.parse(cell.source)
    except SyntaxError:
        return ast.Module([], [])


def calls(cell):
    """The dotted names that a cell's own statements call, `print` or `check.gae`."""
    return [
        ast.unparse(statement.value.func)
        for statement in tree(cell).body
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
    ]


# ------------------------------------------------------------- the file and its outputs


def valid_format(notebook):
    ids = [cell.get("id") for cell in notebook.cells]
    if notebook.nbformat_minor < 5 or None in ids or len(set(ids)) < len(ids):
        yield "each cell needs an id of its own, so at least nbformat 4.5"
    try:
        # it mends some things in what it is given
        nbformat.validate(copy.deepcopy(notebook))
    except nbformat.ValidationError as error:
        yield f"invalid notebook: {error.message}"
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "kernelspec is not python3"


def run_in_order(notebook):
    counts = [cell.execution_count for cell in code_cells(notebook)]
    if counts != list(range(1, len(counts) + 1)):
        yield f"execution counts are not 1..{len(counts)}: restart and run all cells"
    for cell in code_cells(notebook):
        if "execution" in cell.metadata:
            yield f"{place(notebook, cell)} has time stamps in its metadata"


def outputs_are_there(notebook):
    for cell in code_cells(notebook):
        shows = any(
            call in ("print", "plt.show") or call.startswith("check.")
            for call in calls(cell)
        )
        if shows and not cell.outputs:
            yield f"{place(notebook, cell)} shows something but has no outputs"


def outputs_can_be_compared(notebook):
    for cell in code_cells(notebook):
        for output in cell.outputs:
            if output.output_type == "error":
                yield f"{place(notebook, cell)} ends in an error"
            if unknown := set(output.get("data", {})) - MEDIA:
                kinds = ", ".join(sorted(unknown))
                yield f"{place(notebook, cell)} has outputs of kind {kinds} (make tidy)"
        if LIVE.search(cell.source):
            yield f"{place(notebook, cell)} changes its outputs while it runs"


def significant_digits(number):
    """How many digits of a printed number count: 3 in 0.0123, 5 in 12.340."""
    return len(re.sub(r"e.*|[-.]", "", number).lstrip("0"))


def prints_are_stable(notebook):
    """Floats differ in their last digits between machines: at most five may show."""
    for cell in code_cells(notebook):
        compared = [
            text for text in texts(cell) if "nbval-ignore-output" not in tags(cell)
        ]
        numbers = re.findall(
            r"(?<![\w.])-?\d+\.\d+(?:e[-+]?\d+)?(?![\w.])", "\n".join(compared)
        )
        if long := [number for number in numbers if significant_digits(number) > 5]:
            numbers = ", ".join(long)
            yield f"{place(notebook, cell)} prints unstable digits: {numbers}"


def no_machine_paths(notebook):
    for cell in notebook.cells:
        for text in [cell.source, *(texts(cell) if cell.cell_type == "code" else [])]:
            if found := MACHINE_PATH.search(text):
                yield f"{place(notebook, cell)} holds an absolute path: {found[0]}"


# --------------------------------------------------------------- the code and the shape


def plain_python(notebook):
    for cell in code_cells(notebook):
        lines = [line.strip() for line in cell.source.split("\n")]
        if any(line.startswith(("%", "!")) for line in lines):
            yield f"{place(notebook, cell)} has a magic or a shell command"
        # a docstring's may stand there
        if not sync.cell_header(cell) and any(line.endswith(";") for line in lines):
            yield f"{place(notebook, cell)} has a trailing semicolon: write _ = …"
        if "NBVAL_" in cell.source:
            yield f"{place(notebook, cell)} has an nbval comment: use a tag"


def known_tags(notebook):
    for cell in notebook.cells:
        known = {tag for tag in tags(cell) if tag in TAGS or tag.startswith(PITFALL)}
        if unknown := set(tags(cell)) - known:
            names = ", ".join(sorted(unknown))
            yield f"{place(notebook, cell)} has unknown tags: {names}"


def readable_length(notebook):
    for cell in code_cells(notebook):
        lines = cell.source.count("\n") + 1
        if lines > 30 and not sync.cell_header(cell):
            yield f"{place(notebook, cell)} has {lines} lines, more than 30"


def narrow_lines(notebook):
    """88 columns, as everywhere; ruff looks at the package's lines where they stand."""
    for cell in code_cells(notebook):
        widest = max(map(len, cell.source.split("\n")))
        if widest > 88 and not sync.cell_header(cell):
            yield f"{place(notebook, cell)} has a line of {widest} columns, over 88"


def prose_between(notebook):
    run = 0
    for cell in notebook.cells:
        run = run + 1 if cell.cell_type == "code" else 0
        if run == 4:
            yield f"{place(notebook, cell)} is the fourth code cell without prose"


def lesson_length(notebook):
    if not 40 <= len(notebook.cells) <= 70:
        yield f"has {len(notebook.cells)} cells, 40 to 70 are asked for"


def two_exercises(notebook):
    if sum("exercise" in tags(cell) for cell in notebook.cells) < 2:
        yield "has fewer than two exercises"


def exercises_are_checked(notebook):
    for cell, after in pairwise([*notebook.cells, nbformat.v4.new_markdown_cell()]):
        if "exercise" in tags(cell):
            is_written = sync.cell_header(cell) or mend.mended_name(cell)
            if cell.cell_type != "code" or not is_written:
                yield f"{place(notebook, cell)} is an exercise but no definition cell"
            if after.cell_type != "code" or not any(
                call.startswith("check.") for call in calls(after)
            ):
                yield f"{place(notebook, cell)} is an exercise without check after it"


def definitions_agree(notebook):
    try:
        for cell in sync.definition_cells(notebook):
            if differing := sync.differing(notebook.cells[cell.index].source, cell):
                names = ", ".join(differing)
                yield f"cell {cell.index} differs from {cell.file}: {names} (make sync)"
    except ValueError as error:
        yield str(error)


FOR_ALL = [
    valid_format,
    run_in_order,
    outputs_are_there,
    outputs_can_be_compared,
    prints_are_stable,
    no_machine_paths,
    plain_python,
    known_tags,
    readable_length,
    narrow_lines,
    prose_between,
    exercises_are_checked,
    definitions_agree,
]
FOR_LESSONS = [lesson_length, two_exercises]  # 00_map teaches nothing yet


def complaints(notebook, is_lesson=True):
    rules = FOR_ALL + (FOR_LESSONS if is_lesson else [])
    return [
        f"{complaint} [{rule.__name__}]"
        for rule in rules
        for complaint in rule(notebook)
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_clean(path):
    # unlike nbformat.read, it mends no ids
    notebook = nbformat.v4.reads(path.read_text(encoding="utf-8"))
    assert complaints(notebook, is_lesson=not path.name.startswith("00_")) == []


def misplaced(taught, notebooks):
    """What is wrong with who teaches what: taught, name -> notebooks' stems."""
    for name, places in taught.items():
        if len(places) > 1:
            yield f"{name} is taught more than once: {', '.join(places)}"
    for number, names in LESSONS.items():
        home = [stem for stem in notebooks if stem.startswith(number + "_")]
        for name in names:
            if home and taught.get(name, []) != home:
                yield f"{name} is not taught in {home[0]}"


def test_every_definition_has_one_home():
    assert list(misplaced(sync.taught(), [path.stem for path in NOTEBOOKS])) == []


@pytest.mark.parametrize("module", ["tokenizer", "model", "generate", "lm"])
def test_all_of_a_module_is_taught(module):
    """Every public function and class of the language model belongs to a lesson.

    Except what only refuses bad input: `require_…`, and two of tokenizer.py.
    """
    parsed = ast.parse(
        (sync.PROJECT / f"minillama/{module}.py").read_text(encoding="utf-8")
    )
    defined = {
        node.name
        for node in parsed.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    taught = {name for names in LESSONS.values() for name in names}
    doors = {"load_pieces", "as_list"}
    assert {x for x in defined - doors if not x.startswith(("_", "require_"))} <= taught


# ------------------------------------------------- every rule fires on a planted breach

SYNC_SOURCE = Path(sync.__file__).read_text(encoding="utf-8")
SOME_DEFINITION = (
    "# exercise · minillama/course/sync.py\n"
    + sync.definitions(SYNC_SOURCE)["taught"][0]
)


def code(source, *outputs, tags=(), **metadata):
    if tags:
        metadata["tags"] = list(tags)
    return nbformat.v4.new_code_cell(source, outputs=list(outputs), metadata=metadata)


def shown(data):
    return nbformat.v4.new_output("display_data", data=data)


def printed(text, name="stdout"):
    return nbformat.v4.new_output("stream", text=text, name=name)


def clean_notebook(*more):
    """A notebook of 40 cells without a breach, with `more` cells after prose."""
    check = code("check.taught(taught)", printed("taught: 2 checks passed\n"))
    exercise = code(SOME_DEFINITION, tags=["exercise"]), check
    prose = [
        nbformat.v4.new_markdown_cell(f"Why? Because safety/helpfulness. {i}")
        for i in range(35)
    ]
    first = code("x = 0.5\nprint(x)", printed("0.5, 12.345, 1.25e-07, 640x480\n"))
    cells = [first, prose[0], *exercise, prose[1], *exercise, *prose[2:], *more]
    notebook = nbformat.v4.new_notebook()
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    )
    notebook.cells = [
        nbformat.from_dict(dict(cell, id=f"cell-{i}")) for i, cell in enumerate(cells)
    ]
    for count, cell in enumerate(code_cells(notebook), start=1):
        cell.execution_count = count
    return notebook


def test_a_clean_notebook_has_no_complaints():
    assert len(clean_notebook().cells) == 40
    assert complaints(clean_notebook()) == []


PLANTED_CELLS = {
    "an error": (
        outputs_can_be_compared,
        code(
            "1 / 0",
            nbformat.v4.new_output(
                "error",
                ename="ZeroDivisionError",
                evalue="division by zero",
                traceback=["division by zero"],
            ),
        ),
    ),
    "an SVG": (
        outputs_can_be_compared,
        code("plt.show()", shown({"image/svg+xml": "<svg/>"})),
    ),
    "a widget": (
        outputs_can_be_compared,
        code(
            "tqdm(x)",
            shown(
                {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "  0%|"}
            ),
        ),
    ),
    "clear_output": (outputs_can_be_compared, code("clear_output(wait=True)")),
    "an updated display": (
        outputs_can_be_compared,
        code("h = display(1, display_id=True)"),
    ),
    "a print without output": (outputs_are_there, code("x = 1\nprint(x)")),
    "a figure without output": (outputs_are_there, code("plt.show()")),
    "a check without output": (outputs_are_there, code("check.gae(gae)")),
    "six digits": (prints_are_stable, code("print(x)", printed("x = 0.693147\n"))),
    "six digits in a result": (
        prints_are_stable,
        code("x", shown({"text/plain": "tensor([12.3456, 1.])"})),
    ),
    "time stamps": (
        run_in_order,
        code("x = 1", execution={"iopub.execute_input": "2026-01-01T00:00:00Z"}),
    ),
    "a path in the source": (
        no_machine_paths,
        code("folder = '/" + "home/ann/models'"),
    ),
    "a path in an output": (
        no_machine_paths,
        code("print(x)", printed("saved in /" + "tmp/x.pt\n")),
    ),
    "a path in a warning": (
        no_machine_paths,
        code("f()", printed("/" + "usr/lib/x.py:1: old\n", "stderr")),
    ),
    "a path on Windows": (no_machine_paths, code("folder = 'C:" + "\\\\Users'")),
    "a path in prose": (
        no_machine_paths,
        nbformat.v4.new_markdown_cell("Look into /" + "root/x."),
    ),
    "a magic": (plain_python, code("%matplotlib inline")),
    "a shell command": (plain_python, code("!pip list")),
    "a trailing semicolon": (plain_python, code("plt.plot(x);\ny = 1")),
    "an nbval comment": (plain_python, code("# NBVAL_SKIP\nx = 1")),
    "an unknown tag": (known_tags, code("x = 1", tags=["raises-exception"])),
    "31 lines": (readable_length, code("\n".join(31 * ["x = 1"]))),
    "89 columns": (narrow_lines, code(f"# {87 * 'x'}")),
    "a long line in a string": (narrow_lines, code(f'x = """\n{89 * "x"}"""')),
    "an exercise without check": (
        exercises_are_checked,
        code(SOME_DEFINITION, tags=["exercise"]),
    ),
    "an exercise of its own": (
        exercises_are_checked,
        code("def mine(): ...", tags=["exercise"]),
    ),
    "an altered definition": (
        definitions_agree,
        code(SOME_DEFINITION.replace("sorted", "list")),
    ),
    "an unknown definition": (
        definitions_agree,
        code("# minillama/course/sync.py\ndef unheard_of(): ..."),
    ),
}


@pytest.mark.parametrize("rule, cell", PLANTED_CELLS.values(), ids=PLANTED_CELLS)
def test_rule_fires_on_a_planted_cell(rule, cell):
    notebook = clean_notebook(cell)
    found = complaints(notebook)
    assert found and any(
        complaint.endswith(f"[{rule.__name__}]") for complaint in found
    ), found
    planted = re.compile(rf"cell {len(notebook.cells) - 1}\b")
    # and nothing elsewhere
    assert all(planted.match(complaint) for complaint in found), found


def test_ignored_outputs_may_have_many_digits_and_stderr_progress():
    training = code(
        "train()",
        printed("100%|####| 9/9 [00:01<00:00, 9.1it/s]", "stderr"),
        printed("loss 0.12345678\n"),
        tags=["nbval-ignore-output"],
    )
    assert complaints(clean_notebook(training)) == []


def set_count(notebook):
    notebook.cells[0].execution_count = 2


def unset_count(notebook):
    notebook.cells[-1] = code("x = 1")
    notebook.cells[-1].id = "last"


def repeat_id(notebook):
    notebook.cells[1].id = notebook.cells[0].id


def drop_id(notebook):
    del notebook.cells[1]["id"]


def age(notebook):
    notebook.nbformat_minor = 4


def rename_kernel(notebook):
    notebook.metadata.kernelspec.name = "my-env"


def add_field(notebook):
    notebook.cells[1]["colour"] = "blue"


def shorten(notebook):
    del notebook.cells[-2:]


def lengthen(notebook):
    notebook.cells += [nbformat.v4.new_markdown_cell("more") for _ in range(40)]


def drop_exercise(notebook):
    notebook.cells[2].metadata.tags.remove("exercise")


def remove_prose(notebook):
    for cell in notebook.cells[1], notebook.cells[4]:
        notebook.cells.remove(cell)


@pytest.mark.parametrize(
    "rule, spoil",
    [
        (run_in_order, set_count),
        (run_in_order, unset_count),
        (prose_between, remove_prose),
        (valid_format, repeat_id),
        (valid_format, drop_id),
        (valid_format, age),
        (valid_format, rename_kernel),
        (valid_format, add_field),
        (lesson_length, shorten),
        (lesson_length, lengthen),
        (two_exercises, drop_exercise),
    ],
)
@pytest.mark.filterwarnings("ignore::nbformat.warnings.MissingIDFieldWarning")
@pytest.mark.filterwarnings("ignore::nbformat.warnings.DuplicateCellId")
def test_rule_fires_on_a_spoiled_notebook(rule, spoil):
    notebook = clean_notebook()
    assert list(rule(notebook)) == []
    spoil(notebook)
    assert list(rule(notebook))


def test_a_definition_taught_twice_or_not_at_home_is_found():
    homes = {"15": "15_whiten", "17": "17_gae"}
    right = {
        name: [stem] for number, stem in homes.items() for name in LESSONS[number]
    } | {"EPS": ["15_whiten"]}
    assert list(misplaced(right, list(homes.values()))) == []
    assert list(misplaced(right | {"EPS": ["15_whiten", "16_kl"]}, [])) == [
        "EPS is taught more than once: 15_whiten, 16_kl"
    ]
    assert "gae is not taught in 17_gae" in list(
        misplaced({"gae": ["16_kl"]}, ["16_kl", "17_gae"])
    )
    assert list(misplaced({}, ["17_gae"])) == [
        f"{name} is not taught in 17_gae" for name in LESSONS["17"]
    ]


# ------------------------------------------------------------- how nbval is made use of


@pytest.mark.parametrize(
    "one, other, same",
    [
        (
            "training:  40%|####  | 4/10 [00:01]",
            "training: 100%|######| 10/10 [00:09, loss=0.2]",
            True,
        ),
        ("took 12.3 s", "took 9 s", True),
        ("8100 tokens/s", "33000.5 tokens/s", True),
        ("3 s", "3 steps", False),
        ("<object object at 0x7f1e5c0a>", "<object object at 0x7fffe1b0>", True),
        ("tensor([1.], device='cuda:0')", "tensor([1.])", True),
        ("device: cuda", "device: cpu", True),
        ("tensor([1.])", "tensor([2.])", False),
        ("loss 0.53", "loss 0.54", False),
        ("3 of 5", "4 of 5", False),
        ("100 % of 0x10", "90 % of 0x10", False),
    ],
)
def test_the_sanitizer_hides_what_varies_and_nothing_else(one, other, same):
    patterns = get_sanitize_patterns(
        (Path(__file__).parent / "sanitize.cfg").read_text(encoding="utf-8")
    )

    def sanitize(text):
        for pattern, replacement in patterns:
            text = re.sub(pattern, replacement, text)
        return text

    assert (sanitize(one) == sanitize(other)) is same


def test_after_a_failed_cell_the_rest_is_skipped_and_stderr_is_not_compared(tmp_path):
    cells = [
        code("import sys\nprint('new', file=sys.stderr)", printed("old\n", "stderr")),
        code("print(1)", printed("2\n")),
        code("print(3)", printed("3\n")),
        code("print(4)", printed("4\n")),
    ]
    for count, cell in enumerate(cells, start=1):
        cell.execution_count = count
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "bad.ipynb")
    conftest = Path(__file__).parents[1] / "conftest.py"
    (tmp_path / "conftest.py").write_text(
        conftest.read_text(encoding="utf-8"), encoding="utf-8"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "bad.ipynb",
        "--nbval",
        "--nbval-current-env",
        "-rs",
    ]
    output = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=120
    ).stdout
    assert (
        "1 failed, 1 passed, 2 skipped" in output
        and "bad.ipynb: Cell 1 failed" in output
    )


def test_no_network_refuses_the_internet_only(no_network):
    with pytest.raises(AssertionError, match="network access"):
        socket.create_connection(("localhost", 9))
    for connect in (socket.socket.connect, socket.socket.connect_ex):
        with (
            socket.socket() as internet,
            pytest.raises(AssertionError, match="network access"),
        ):
            connect(internet, ("127.0.0.1", 9))
    with socket.socket(socket.AF_UNIX) as local, pytest.raises(FileNotFoundError):
        local.connect("no such socket")
