"""The second route to all that grammar.py computes: write every text of a grammar."""

from minillama import grammar


def derivations(part):
    """Return every way to write a part: a list of (sentences, probability).

    What has probability 0 is left out. Two choices that write the same sentences stand
    there twice: `texts` puts them together.
    """
    if isinstance(part, str):
        return [((part,), 1.0)]
    if isinstance(part, tuple):
        found = [((), 1.0)]
        for x in part:
            after = derivations(x)
            found = [(a + b, p * q) for a, p in found for b, q in after]
        return found
    return [
        (sentences, p * q)
        for p, x in zip(part.probabilities, part.parts, strict=True)
        if p > 0
        for sentences, q in derivations(x)
    ]


def texts(part):
    """Return {sentences: probability} of every text that a part may write."""
    found = {}
    for sentences, p in derivations(part):
        found[sentences] = found.get(sentences, 0.0) + p
    return found


def nodes(part):
    """Return every `OneOf` in a part, each once."""
    found, ahead = {}, [part]
    while ahead:
        x = ahead.pop()
        if isinstance(x, tuple):
            ahead += x
        elif isinstance(x, grammar.OneOf) and id(x) not in found:
            found[id(x)] = x
            ahead += x.parts
    return list(found.values())
