"""The arithmetic of bench.py, and its GPU part on a CPU with a small model."""

from dataclasses import replace

import bench
import torch

from minillama.model import LlamaConfig

TINY = LlamaConfig(50, 16, 2, 2, 1, 24, 32)


def test_flops_of_a_judge_by_hand():
    """A block has 2 x 16 x 16 + 2 x 16 x 8 + 3 x 16 x 24 = 1920 weights, and two of
    them 6 x 3840 FLOPs a token; attention 12 x 2 x 16 x 10."""
    assert bench.body_flops(TINY, 10) == 6 * 3840 + 3840


def test_what_fits_needs_no_more_than_there_is():
    for room in (10**10, 4 * 10**10, 6.4e10):
        layers = bench.layers_that_fit(bench.LLAMA_7B, 8, 1024, room)
        needs = [
            bench.bytes_needed(replace(bench.LLAMA_7B, n_layers=n), 8, 1024)
            for n in (layers or 1, layers + 1)
        ]
        assert (layers == 0 or needs[0] <= room) and needs[1] > room
    assert bench.layers_that_fit(TINY, 2, 8, 10**12) == TINY.n_layers
    assert bench.layers_that_fit(TINY, 2, 8, 10) == 0


def test_eight_bytes_a_weight_by_hand():
    """Blocks and table: 3840 + 800 weights; one token leaves in a block
    8 x 16 + 2 x 8 + 4 x 24 + 2 + 2 = 244 numbers, at the end 49, and 8 for angles."""
    assert bench.bytes_needed(TINY, 1, 1) == 8 * 4640 + 4 * (2 * 244 + 49 + 8)


def test_both_sides_learn_pairs_in_bfloat16():
    ids = torch.randint(6, 50, (4, 8), generator=torch.Generator().manual_seed(0))
    for make in (bench.our_judge, bench.their_judge):
        model, scores_of = make(TINY)
        assert scores_of(ids).shape == (4,)
        dtypes = {x.dtype for name, x in model.named_parameters() if "layers" in name}
        assert dtypes == {torch.bfloat16}
        before = [x.clone() for x in model.parameters()]
        loss = bench.judge_step(model, scores_of, ids)()
        assert 0 < loss < 10
        assert any(
            (a != b).any() for a, b in zip(before, model.parameters(), strict=True)
        )


def test_the_table_has_both_sides(capsys, monkeypatch):
    monkeypatch.setattr(bench, "REPEATS", 1)
    bench.bench_judges(TINY, 2, 8, "cpu", bench.matmul_peak("cpu", torch.float32, 64))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["minillama", "transformers,"]
    assert all("tokens a second" in x and "% of the peak" in x for x in lines)
