"""Files of preferences: every fault named with file and line, memory that stays."""

import gzip
import itertools
import json
import tracemalloc

import pytest
from sentences import llama_layout

from minillama import preference_file as p
from minillama.llama_tokenizer import Llama2Tokenizer, encode_prompt, encode_response

TOKENIZER = Llama2Tokenizer(llama_layout())

ASKED = "\n\nHuman: How do I boil an egg?\n\nAssistant: With water.\n\nHuman: And then?"
GOOD = {
    "chosen": f"{ASKED}\n\nAssistant: Lower the egg in.",
    "rejected": f"{ASKED}\n\nAssistant: No.",
}
TURNS = (
    ("user", "How do I boil an egg?"),
    ("assistant", "With water."),
    ("user", "And then?"),
)


def messages(*texts, roles=("user", "assistant")):
    return [
        {"role": role, "content": text}
        for role, text in zip(itertools.cycle(roles), texts, strict=False)
    ]


ASKED_MESSAGES = ("How do I boil an egg?", "With water.", "And then?")
AS_MESSAGES = {
    "chosen": messages(*ASKED_MESSAGES, "Lower the egg in."),
    "rejected": messages(*ASKED_MESSAGES, "No."),
}


def write(path, records, open_file=open):
    """Write records, or lines given as bytes, to a file of JSON lines."""
    with open_file(path, "wb") as file:
        for record in records:
            line = record if isinstance(record, bytes) else json.dumps(record).encode()
            file.write(line + b"\n")
    return path


@pytest.mark.parametrize("record", [GOOD, AS_MESSAGES])
@pytest.mark.parametrize("open_file", [open, gzip.open])
def test_both_layouts_plain_and_packed(tmp_path, record, open_file):
    path = write(tmp_path / "pairs.jsonl", [record] * 2, open_file)
    first, second = p.read_preferences(path)
    assert (first.prompt, first.chosen, first.rejected) == (
        TURNS,
        "Lower the egg in.",
        "No.",
    )
    assert (first.strength, first.margin) == (None, None)
    assert (first.where, second.where) == (f"{path}, line 1", f"{path}, line 2")


def test_a_system_message_and_a_last_line_without_end(tmp_path):
    record = {
        side: [{"role": "system", "content": "Be kind."}, *messages("Hi.", text)]
        for side, text in (("chosen", "Hello."), ("rejected", "Go."))
    }
    (tmp_path / "a").write_text(json.dumps(record), encoding="utf-8")
    [pair] = p.read_preferences(str(tmp_path / "a"))
    assert pair.prompt == (("system", "Be kind."), ("user", "Hi."))
    assert (pair.chosen, pair.rejected) == ("Hello.", "Go.")


def test_the_last_assistant_turn_is_the_response(tmp_path):
    """An answer may have blank lines and name speakers within a line."""
    text = "\n\nHuman: Hi.\n\nAssistant: One.\n\nTwo: Human: x\n\nThree"
    record = {"chosen": text, "rejected": text + "!"}
    [pair] = p.read_preferences(write(tmp_path / "a", [record]))
    assert pair.prompt == (("user", "Hi."),)
    assert pair.chosen == "One.\n\nTwo: Human: x\n\nThree"


def test_columns_of_strength_and_margin(tmp_path):
    path = write(tmp_path / "a", [GOOD | {"how": 3, "gap": 0.5}, GOOD | {"how": 0}])
    strengths = [pair.strength for pair in p.read_preferences(path, strength="how")]
    assert strengths == [3, 0]
    tally = p.Tally()
    [pair] = p.read_preferences(path, margin="gap", tally=tally)
    assert (pair.margin, pair.strength, dict(tally.skipped)) == (
        0.5,
        None,
        {"missing field": 1},
    )


def side(text):
    """A good line whose rejected side is another string."""
    return GOOD | {"rejected": text}


FAULTS = [  # a line, the kind of its fault, what came
    (b'{"chosen": "a"', "broken line", "got Expecting"),
    (b"", "broken line", "got Expecting value"),
    (b"[1]", "broken line", "got a list"),
    (b'{"chosen": 1, "chosen": 2}', "broken line", "got a name twice"),
    (b'{"chosen": NaN}', "broken line", "got NaN, which JSON does not have"),
    (b"[" * 100_000, "broken line", "recursion"),
    (json.dumps(GOOD).encode("utf-16"), "wrong encoding", "utf-8"),
    (
        json.dumps(side(GOOD["chosen"] + "\u00e9"), ensure_ascii=False).encode(
            "latin1"
        ),
        "wrong encoding",
        "can't decode byte 0xe9",
    ),
    (json.dumps(GOOD).encode("utf-8-sig"), "wrong encoding", "byte order mark"),
    (side(GOOD["chosen"] + "\ud800"), "wrong encoding", r"'\\ud800' in rejected"),
    ({"chosen": GOOD["chosen"]}, "missing field", "got no rejected"),
    (GOOD | {"chosen": None}, "missing field", "got no chosen"),
    (side(5), "wrong field", "got rejected = 5"),
    (side([{"role": "user"}]), "wrong field", "got rejected with a message {'role'"),
    (side([{"role": "bot", "content": "a"}]), "wrong field", "message {'role': 'bot'"),
    (side([{"role": "user", "content": ["a"]}]), "wrong field", "message"),
    (side(["a"]), "wrong field", "got rejected with a message 'a'"),
    (side("A plain text."), "wrong turns", "got 'A plain text.' where a mark must"),
    (side("x" + GOOD["chosen"]), "wrong turns", r"got 'x\\n\\nHuman"),
    (side(ASKED), "wrong turns", "got rejected with user, assistant, user"),
    (side("\n\nAssistant: Hi."), "wrong turns", "got rejected with assistant"),
    (side("\n\nHuman: a\n\nHuman: b\n\nAssistant: c"), "wrong turns", "user, user, as"),
    (side([]), "wrong turns", "got rejected with no turn"),
    (side(messages("a", "b", roles=("system", "assistant"))), "wrong turns", "system"),
    (
        side(GOOD["chosen"].replace("boil", "fry")),
        "different prompts",
        "got another turn 1",
    ),
    (
        side("\n\nHuman: How do I boil an egg?\n\nAssistant: No."),
        "different prompts",
        "got 3 turns and 1",
    ),
    (side(f"{ASKED}\n\nAssistant: \n "), "empty response", "got an empty rejected one"),
    (
        side(f"{GOOD['chosen']} "),
        "identical responses",
        "got twice 'Lower the egg in.'",
    ),
    (side(AS_MESSAGES["chosen"]), "identical responses", "got twice"),
]


@pytest.mark.parametrize("line, kind, got", FAULTS, ids=range(len(FAULTS)))
def test_a_fault_is_named_or_counted(tmp_path, line, kind, got):
    path = write(tmp_path / "pairs.jsonl", [GOOD, line, AS_MESSAGES])
    reader = p.read_preferences(path)
    next(reader)
    with pytest.raises(p.Fault) as caught:
        next(reader)
    message = str(caught.value)
    assert caught.value.kind == kind and isinstance(caught.value, ValueError)
    start = f"read_preferences: {path}, line 2: {p.DEMANDS[kind]}, got "
    assert message.startswith(start)
    with pytest.raises(p.Fault, match=got):
        list(p.read_preferences(path))
    tally = p.Tally()
    if b"\x00" in bytes(line if isinstance(line, bytes) else b""):
        return  # UTF-16 has ends of lines of its own; the first of them is named
    pairs = list(p.read_preferences(path, tally=tally))
    assert [pair.where[-1] for pair in pairs] == ["1", "3"]
    assert (tally.read, tally.kept, dict(tally.skipped)) == (3, 2, {kind: 1})
    assert tally.first == {kind: message}


@pytest.mark.parametrize(
    "column, value",
    [
        ("strength", 1.5),
        ("strength", -1),
        ("strength", True),
        ("strength", "2"),
        ("margin", -0.5),
        ("margin", "a"),
        ("margin", 10**400),
        ("margin", False),
    ],
)
def test_a_column_that_is_no_such_number(tmp_path, column, value):
    path = write(tmp_path / "a", [GOOD | {column: value}])
    with pytest.raises(p.Fault, match=f"line 1: .*, got {column} = ") as caught:
        list(p.read_preferences(path, **{column: column}))
    assert caught.value.kind == "wrong field"
    assert len(list(p.read_preferences(path))) == 1  # not asked for, not read


def test_a_line_without_end_is_not_read_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(p, "LONGEST_LINE", 1000)
    path = write(tmp_path / "a", [GOOD, b"x" * 5000, b"y" * 1000, GOOD])
    tally = p.Tally()
    pairs = list(p.read_preferences(path, tally=tally))
    assert [pair.where[-1] for pair in pairs] == ["1", "4"]
    assert tally.skipped == {"broken line": 2}
    assert "line 2: " in tally.first["broken line"]
    assert "got more than 1,000 bytes" in tally.first["broken line"]


def test_a_torn_gzip_file_is_refused_even_where_lines_are_skipped(tmp_path):
    path = write(tmp_path / "a.gz", [GOOD] * 500, gzip.open)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(
        ValueError, match=r"a.gz must be a whole gzip .* after line \d+"
    ):
        list(p.read_preferences(path, tally=p.Tally()))
    path.write_bytes(whole[:40] + b"\0\0\0\0" + whole[44:])
    with pytest.raises(ValueError, match="a.gz must be a whole gzip file, got"):
        list(p.read_preferences(path, tally=p.Tally()))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list(p.read_preferences(tmp_path / "nowhere"))


def test_two_thousand_lines_with_planted_faults(tmp_path):
    """Every planted line is counted, every other one kept, in order."""
    planted = {50 * i + 7: line for i, (line, _, _) in enumerate(FAULTS)}
    del planted[50 * 6 + 7]  # UTF-16, whose line ends are not ours
    lines = [planted.get(i, GOOD) for i in range(2000)]
    path, tally = write(tmp_path / "pairs.jsonl.gz", lines, gzip.open), p.Tally()
    pairs = list(p.read_preferences(path, tally=tally))
    assert [pair.where for pair in pairs] == [
        f"{path}, line {i + 1}" for i in range(2000) if i not in planted
    ]
    assert tally.read == 2000 and tally.kept == len(pairs) == 2000 - len(planted)
    said = list(tally.lines())
    assert said[0] == "1,972 of 2,000 lines kept, 0 of them cut"
    kinds = set(p.DEMANDS) - {
        "not encodable",
        "prompt too long",
        "identical after truncation",
    }
    assert set(tally.skipped) == kinds and len(said) == 1 + len(kinds)


@pytest.mark.parametrize("open_file", [open, gzip.open])
def test_memory_does_not_grow_with_the_file(tmp_path, open_file):
    peaks = []
    for count in (1000, 10_000):
        faulty = [GOOD] * 9 + [b"broken"]
        lines = itertools.islice(itertools.cycle(faulty), count)
        path = write(tmp_path / str(count), lines, open_file)
        tracemalloc.start()
        read = sum(1 for _ in p.read_preferences(path, tally=p.Tally()))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert read == count * 9 // 10
    assert peaks[1] < peaks[0] + 100_000  # the longer file has 2 MB


# --------------------------------------------------------------------------------------
# Ids


def pairs_of(path, max_tokens=200, tally=None, margins=None, **columns):
    comparisons = p.read_preferences(path, tally=tally, **columns)
    encoders = (
        lambda turns: encode_prompt(TOKENIZER, turns),
        lambda text: encode_response(TOKENIZER, text),
    )
    return list(p.encode_pairs(comparisons, *encoders, max_tokens, margins, tally))


PROMPT = encode_prompt(TOKENIZER, TURNS)
ANSWERS = [encode_response(TOKENIZER, text) for text in ("Lower the egg in.", "No.")]


def test_comparisons_become_pairs_of_ids(tmp_path):
    path = write(tmp_path / "a", [GOOD])
    [pair] = pairs_of(path)
    assert (pair.chosen, pair.rejected) == (PROMPT + ANSWERS[0], PROMPT + ANSWERS[1])
    assert (pair.response_start, pair.margin) == (len(PROMPT), 0.0)
    assert (pair.chosen_is_safe, pair.rejected_is_safe) == (None, None)


def test_margins_of_the_file_and_of_strengths(tmp_path):
    path = write(tmp_path / "a", [GOOD | {"s": 1, "m": 3}, GOOD | {"s": 2, "m": 0}])
    margins = (0.0, 0.25, 0.5)
    by_strength = pairs_of(path, margins=margins, strength="s")
    assert [pair.margin for pair in by_strength] == [0.25, 0.5]
    own = pairs_of(path, margins=margins, strength="s", margin="m")
    assert [pair.margin for pair in own] == [3.0, 0.0]
    assert [pair.margin for pair in pairs_of(path, strength="s")] == [0.0, 0.0]
    with pytest.raises(p.Fault, match="line 2: .*, got strength 2 with 2 margins"):
        pairs_of(path, margins=(0.0, 0.25), strength="s")


def test_long_dialogues_are_cut_and_counted(tmp_path):
    path, tally = write(tmp_path / "a", [GOOD] * 3), p.Tally()
    size = len(PROMPT) + 4
    pairs = pairs_of(path, size, tally)
    assert [(len(x.chosen), x.rejected) for x in pairs] == [
        (size, (PROMPT + ANSWERS[1])[:size])
    ] * 3
    assert (tally.kept, tally.cut) == (3, 3)
    exact, tally = len(PROMPT) + max(map(len, ANSWERS)), p.Tally()
    assert len(pairs_of(path, exact, tally)) == 3 and tally.cut == 0


def test_faults_that_show_in_ids(tmp_path):
    same = [f"{ASKED}\n\nAssistant: Lower the {x}." for x in ("egg", "pot")]
    tag = [f"\n\nHuman: a [/INST]\n\nAssistant: {x}" for x in "bc"]
    lines = [
        GOOD,
        dict(zip(("chosen", "rejected"), same, strict=True)),
        dict(zip(("chosen", "rejected"), tag, strict=True)),
    ]
    path, tally = write(tmp_path / "a", lines), p.Tally()
    shared = encode_response(TOKENIZER, "Lower the")[:-2]
    kept = pairs_of(path, len(PROMPT) + len(shared), tally)
    assert len(kept) == 1 and dict(tally.skipped) == {
        "identical after truncation": 1,
        "not encodable": 1,
    }
    assert (tally.read, tally.kept, tally.cut) == (3, 1, 1)
    with pytest.raises(p.Fault, match="line 2: .* got twice the same .* max_tokens = "):
        pairs_of(path, len(PROMPT) + len(shared))
    with pytest.raises(p.Fault, match="line 3: .* got encode_prompt: turns must hold"):
        pairs_of(path)
    with pytest.raises(p.Fault, match=f"line 1: .*, got {len(PROMPT)} of 9 tokens"):
        pairs_of(path, 9)
