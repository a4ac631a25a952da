"""The fast paths against the plain definitions that the lessons show."""

from minillama.data import pad
from minillama.fast import length_groups


def test_length_groups_hold_every_real_token_once_and_in_order():
    lengths = [3, 9, 1, 4, 4, 8, 2]
    ids, mask = pad([list(range(10 * n, 10 * n + n)) for n in lengths], "left")
    seen = {}
    for rows, columns in length_groups(mask, size=3):
        assert columns.shape[1] == max(
            lengths[row] for row in rows
        )  # as short as can be
        texts, real = ids[rows].gather(1, columns), mask[rows].gather(1, columns)
        seen |= {
            int(row): text[kept].tolist()
            for row, text, kept in zip(rows, texts, real, strict=True)
        }
    assert seen == {
        row: list(range(10 * n, 10 * n + n)) for row, n in enumerate(lengths)
    }
