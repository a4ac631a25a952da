"""Checks of 06_sft."""

import torch

from minillama.course.checks.case import check, tiny_tokenizer
from minillama.course.checks.shared import TYPED
from minillama.data import Example


@check
def dialogue_example(f):
    """Check `dialogue_example(tokenizer, prompt, response, response_only)`."""
    tiny = tiny_tokenizer()
    space, ab, b = tiny.encode(" "), tiny.encode("ab"), tiny.encode("b")
    whole = [1, 4, *space, *ab, 5, *space, *b, 2]
    yield (
        "the whole dialogue",
        list(f(tiny, "ab", "b", False).ids),
        whole,
        "prompt ids, then response ids",
    )
    yield (
        "all of it counts, of a longer one too",
        [f(tiny, prompt, "b", False).loss_start for prompt in ("ab", TYPED)],
        [1, 1],
        "the first token has no past",
    )
    yield (
        "the response alone",
        f(tiny, "ab", "b", True).loss_start,
        whole.index(5) + 1,
        "the loss starts after [/INST]",
    )
    longer = f(tiny, "b ab b", "ab b", True)
    yield (
        "the response of a longer prompt",
        list(longer.ids[longer.loss_start :]),
        [*tiny.encode(" ab b"), 2],
        "the length of the prompt's ids, special symbols included",
    )
    yield (
        "the end of sequence is in it",
        f(tiny, "ab", "b", True).ids[-1],
        2,
        "else the model never learns to stop",
    )
    typed = f(tiny, TYPED, TYPED, True)
    yield (
        "a prompt and a response that spell symbols, with spaces at both ends",
        [
            tiny.decode(typed.ids),
            typed.ids.count(5),
            len(typed.ids[typed.loss_start :]),
        ],
        [f" {TYPED} {TYPED}", 1, 2 + len(tiny.encode(" " + TYPED)) - 1],
        "both texts as they are, neither able to type a symbol",
    )


@check
def pad_examples(f):
    """Check `pad_examples(examples)`."""
    given = [Example([7, 8, 9, 2], 2), Example([7, 2], 1), Example([6, 3, 2], 2)]
    ids, mask, loss_mask = f(given)
    yield (
        "ids, padded on the right with 3",
        ids,
        torch.tensor([[7, 8, 9, 2], [7, 2, 3, 3], [6, 3, 2, 3]]),
        "PAD_ID is 3",
    )
    yield (
        "mask",
        mask,
        torch.tensor(
            [[True] * 4, [True, True, False, False], [True, True, True, False]]
        ),
        "True = real token, by the length of its text, whatever its id",
    )
    yield (
        "what counts: from loss_start on, no padding",
        loss_mask,
        torch.tensor(
            [
                [False, False, True, True],
                [False, True, False, False],
                [False, False, True, False],
            ]
        ),
        "real and at or after loss_start",
    )
    yield (
        "ids are int64, masks bool",
        [x.dtype for x in (ids, mask, loss_mask)],
        [torch.int64, torch.bool, torch.bool],
        "compare, and combine with &",
    )
    yield (
        "the examples stay as they were",
        [example.ids for example in given],
        [[7, 8, 9, 2], [7, 2], [6, 3, 2]],
        "pad copies",
    )
    yield (
        "shapes for one text of two ids, and for one of 600",
        [tuple(f([Example([7] * n, 1)])[2].shape) for n in (2, 600)],
        [(1, 2), (1, 600)],
        "as wide as the longest text, no wider",
    )
