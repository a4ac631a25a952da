"""Preference data in files: JSON lines of a chosen and a rejected dialogue, streamed.

Each line is an object with `chosen` and `rejected`, either as strings of the layout
that Bai et al. 2022 (arXiv 2204.05862) published,

    \\n\\nHuman: question\\n\\nAssistant: answer\\n\\nHuman: question\\n\\nAssistant: …

or as lists of messages {"role": …, "content": …} with the roles system, user and
assistant. Both dialogues end with an answer, the last turn; what precedes it is the
prompt, which they share. Files are plain or gzip, told apart by their first bytes.

A line that holds no comparison is a fault with the file's name and the line's number.
It is raised, or counted in a `Tally` and skipped; nothing is mended or passed over in
silence. One line at a time is in memory, however long the file is.

Left out: JSON arrays, Parquet, prompts in a column of their own, shuffling.
"""

import gzip
import json
import re
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from minillama.contracts import expects
from minillama.data import PairExample
from minillama.llama_tokenizer import roles_alternate

LONGEST_LINE = 1 << 24  # bytes; a file that is no JSON lines may be a single line
ROLES = ("system", "user", "assistant")
MARK = re.compile(r"\n\n(Human|Assistant):")
SPEAKER = {"Human": "user", "Assistant": "assistant"}
DEMANDS = {  # kind of a fault -> what must hold
    "broken line": "a line must be one JSON object",
    "wrong encoding": "text must be UTF-8 without lone surrogates",
    "missing field": "a line must have all of its fields",
    "wrong field": "a field must have the type that belongs to it",
    "wrong turns": "user and assistant must take turns, and the last must answer",
    "different prompts": "both sides must share all turns before the last",
    "empty response": "a response must hold some text",
    "identical responses": "the responses must differ",
    "not encodable": "the tokenizer's format must be able to hold the texts",
    "prompt too long": "the prompt must leave room for a response",
    "identical after truncation": "the responses must differ where they are cut",
}


class Fault(ValueError):
    """What is wrong with one line: `kind`, a key of `DEMANDS`, and the place."""

    def __init__(self, kind, where, got):
        super().__init__(f"read_preferences: {where}: {DEMANDS[kind]}, got {got}")
        self.kind = kind


@dataclass
class Tally:
    """What was read and what was skipped; of each kind of fault the first in words."""

    read: int = 0  # So many lines were read, skipped ones included.
    cut: int = 0  # So many of the kept comparisons had a side cut to max_tokens.
    skipped: Counter = field(default_factory=Counter)  # Kind of fault -> lines.
    first: dict = field(default_factory=dict)  # Kind of fault -> its first message.

    @property
    def kept(self):
        """The number of lines that were not skipped."""
        return self.read - self.skipped.total()

    def add(self, fault):
        """Count a fault."""
        self.skipped[fault.kind] += 1
        self.first.setdefault(fault.kind, str(fault))

    def lines(self):
        """Say in lines of text what was kept and skipped."""
        yield f"{self.kept:,} of {self.read:,} lines kept, {self.cut:,} of them cut"
        for kind, count in self.skipped.most_common():
            yield f"{count:,} skipped, {kind}; the first: {self.first[kind]}"

    def report(self):
        """Return the counts as JSON values, and `lines` as `in_words`."""
        return {
            "lines": self.read,
            "cut": self.cut,
            "skipped": dict(self.skipped),
            "in_words": list(self.lines()),
        }


class StrictTally(Tally):
    """A `Tally` that counts what is cut, and raises the first fault."""

    def add(self, fault):
        """Raise a fault."""
        raise fault


@dataclass(frozen=True, slots=True)
class Comparison:
    """One line of a file."""

    prompt: tuple  # Pairs (role, text), from the first turn to the last question.
    chosen: str  # The answer that was preferred.
    rejected: str  # The other answer.
    strength: int | None  # How clearly, from 0; None where no column says so.
    margin: float | None  # The margin of this comparison; None likewise.
    where: str  # File and line.


# --------------------------------------------------------------------------------------
# Lines


def _numbered_lines(path):
    """Yield (number, bytes) of a plain or gzip file's lines; None for one too long."""
    with path.open("rb") as raw:
        is_gzip = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        file, number = gzip.GzipFile(fileobj=raw) if is_gzip else raw, 0
        try:
            while line := file.readline(LONGEST_LINE):
                number += 1
                too_long = len(line) == LONGEST_LINE and not line.endswith(b"\n")
                yield number, None if too_long else line
                while too_long and (line := file.readline(LONGEST_LINE)):
                    too_long = not line.endswith(b"\n")
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(
                f"read_preferences: {path} must be a whole gzip file, got {error} "
                f"after line {number}"
            ) from error


def _once(pairs):
    """A dict of a JSON object's pairs; ValueError for a name that comes twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name twice in one object")
    return found


def _no_number(word):
    raise ValueError(f"{word}, which JSON does not have")


def _record(line, where):
    """The dict of a line."""
    if line is None:
        raise Fault("broken line", where, f"more than {LONGEST_LINE:,} bytes")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Fault("wrong encoding", where, error) from error
    if text.startswith("\ufeff"):
        raise Fault("wrong encoding", where, "a byte order mark")
    try:
        record = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Fault("broken line", where, error) from error
    if not isinstance(record, dict):
        raise Fault("broken line", where, f"a {type(record).__name__}")
    return record


def _get(record, name, where):
    if record.get(name) is None:
        raise Fault("missing field", where, f"no {name}")
    return record[name]


def _number(record, name, kind, where):
    """A number of a line's column, finite and not negative; None without a column."""
    if name is None:
        return None
    value = _get(record, name, where)
    is_number = isinstance(value, kind) and not isinstance(value, bool)
    if not (is_number and 0 <= value < 1e300):
        raise Fault("wrong field", where, f"{name} = {value!r:.40}")
    return value


# --------------------------------------------------------------------------------------
# Dialogues


def _turns_of_text(text, where):
    """The turns (role, text) of a string with Human and Assistant marks."""
    before, *parts = MARK.split(text)
    if before or not parts:
        raise Fault("wrong turns", where, f"{text[:30]!r} where a mark must stand")
    return [
        (SPEAKER[mark], said.strip())
        for mark, said in zip(parts[::2], parts[1::2], strict=True)
    ]


def _turns_of_messages(messages, name, where):
    """The turns (role, text) of a list of messages."""
    for message in messages:
        whole = isinstance(message, dict) and isinstance(message.get("content"), str)
        if not whole or message.get("role") not in ROLES:
            got = f"{name} with a message {message!r:.60}"
            raise Fault("wrong field", where, got)
    return [(message["role"], message["content"].strip()) for message in messages]


def _turns(record, name, where):
    """One side of a line as a prompt's turns and a response."""
    value = _get(record, name, where)
    if isinstance(value, str):
        turns = _turns_of_text(value, where)
    elif isinstance(value, list):
        turns = _turns_of_messages(value, name, where)
    else:
        raise Fault("wrong field", where, f"{name} = {value!r:.40}")
    roles = [role for role, _ in turns]
    if not roles_alternate(roles) or roles[-1] != "assistant":
        got = ", ".join(roles[:9]) + ", …" * (len(roles) > 9) or "no turn"
        raise Fault("wrong turns", where, f"{name} with {got}")
    for _, text in turns:
        if surrogate := re.search("[\ud800-\udfff]", text):
            raise Fault("wrong encoding", where, f"{surrogate[0]!r} in {name}")
    if not turns[-1][1]:
        raise Fault("empty response", where, f"an empty {name} one")
    return tuple(turns[:-1]), turns[-1][1]


def _comparison(record, where, strength, margin):
    """The `Comparison` of a line's dict."""
    prompt, chosen = _turns(record, "chosen", where)
    other, rejected = _turns(record, "rejected", where)
    if prompt != other:
        pairs = zip(prompt, other, strict=False)
        turn = next((i for i, (a, b) in enumerate(pairs, 1) if a != b), None)
        counts = f"{len(prompt)} turns and {len(other)}"
        got = f"another turn {turn}" if turn else counts
        raise Fault("different prompts", where, got)
    if chosen == rejected:
        raise Fault("identical responses", where, f"twice {chosen[:40]!r}")
    return Comparison(
        prompt,
        chosen,
        rejected,
        _number(record, strength, int, where),
        _number(record, margin, int | float, where),
        where,
    )


@expects(
    "path: text or Path",
    "strength, margin: text or None",
    "tally: Tally or None",
)
def read_preferences(path, strength=None, margin=None, tally=None):
    """Yield the comparisons of a file of JSON lines, one `Comparison` at a time.

    strength, margin: names of columns that every line must then have, a whole number
    and a number, neither below 0; None: there are none. tally: None raises the first
    `Fault`; a `Tally` counts faults, and their lines are skipped. A file that cannot be
    read to its end raises in any case.
    """
    path = Path(path)
    for number, line in _numbered_lines(path):
        where = f"{path}, line {number}"
        if tally is not None:
            tally.read += 1
        try:
            comparison = _comparison(_record(line, where), where, strength, margin)
        except Fault as fault:
            if tally is None:
                raise
            tally.add(fault)
        else:
            yield comparison


# --------------------------------------------------------------------------------------
# Ids


def _margin(comparison, margins):
    """The margin of a comparison: its own, or that of its strength, or 0."""
    if comparison.margin is not None:
        return float(comparison.margin)
    if margins is None or comparison.strength is None:
        return 0.0
    if comparison.strength >= len(margins):
        got = f"strength {comparison.strength} with {len(margins)} margins"
        raise Fault("wrong field", comparison.where, got)
    return margins[comparison.strength]


def _pair(comparison, encode_prompt, encode_response, max_tokens, margins):
    """A comparison's `PairExample`, and whether a side was cut."""
    where = comparison.where
    try:
        prompt = encode_prompt(comparison.prompt)
        responses = [
            encode_response(text) for text in (comparison.chosen, comparison.rejected)
        ]
    except ValueError as error:
        raise Fault("not encodable", where, error) from error
    if len(prompt) >= max_tokens:
        raise Fault("prompt too long", where, f"{len(prompt)} of {max_tokens} tokens")
    whole = [prompt + response for response in responses]
    chosen, rejected = (ids[:max_tokens] for ids in whole)
    if chosen == rejected:
        got = f"twice the same {len(chosen)} tokens, with max_tokens = {max_tokens}"
        raise Fault("identical after truncation", where, got)
    margin = _margin(comparison, margins)
    # Nobody has said whether an answer is safe: a loss on such labels fails.
    pair = PairExample(chosen, rejected, margin, None, None, len(prompt))
    return pair, max(map(len, whole)) > max_tokens


@expects(
    "comparisons: generator or list of Comparison",
    "encode_prompt, encode_response: function",
    "max_tokens: int >= 2",
    "margins: list or None",
    "tally: Tally or None",
)
def encode_pairs(
    comparisons, encode_prompt, encode_response, max_tokens, margins=None, tally=None
):
    """Yield comparisons as `PairExample`s of at most `max_tokens` ids a side.

    encode_prompt maps a comparison's turns to ids, encode_response an answer; a
    ValueError of theirs is a fault of the line. Longer dialogues are cut at the end,
    and counted. margins: the margin of each strength, weakest first; a margin of the
    file's own goes before. tally: as for `read_preferences`, and the same one.
    """
    for comparison in comparisons:
        try:
            pair, is_cut = _pair(
                comparison, encode_prompt, encode_response, max_tokens, margins
            )
        except Fault as fault:
            if tally is None:
                raise
            tally.add(fault)
            continue
        if tally is not None:
            tally.cut += is_cut
        yield pair
