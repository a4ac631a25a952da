"""Byte-pair encoding by hand, as lesson 01 writes it (Sennrich et al. 2016).

The two steps that are repeated: count neighbours, merge the most frequent pair. Left
out: speed, and everything around it that SentencePiece adds; the course's tokenizer is
`minillama.tokenizer`.
"""

from collections import Counter
from itertools import pairwise


def count_pairs(words):
    """Return how often each pair of neighbouring pieces stands in a text: a Counter.

    words: {a word's pieces, a tuple: how often the word comes}. Each word is counted
    as often as it comes.
    """
    pairs = Counter()
    for pieces, count in words.items():
        for pair in pairwise(pieces):
            pairs[pair] += count
    return pairs


def merge(pieces, pair):
    """Return a word's pieces, a tuple, with each occurrence of a pair glued together.

    From left to right: of three equal pieces the first two are merged. `+` glues.
    """
    merged = []
    for piece in pieces:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece  # glue to the piece before
        else:
            merged.append(piece)
    return tuple(merged)
