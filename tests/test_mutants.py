"""The parts of `make mutants` that change source text and look tests up by id."""

import textwrap

import pytest
import torch
from mutants import decorators_below, unfindable


def test_decorators_go_below_their_functions():
    source = textwrap.dedent('''
        @expects(
            "x: number",
        )
        @torch.no_grad()
        def f(x):
            """Text."""
            return x

        def plain():
            @inner
            def g():
                pass


        @dataclass(frozen=True)
        class C:
            a: int = 1

            @expects("x: text")  # a comment
            def m(self, x):
                return x

            @property
            def p(self):
                return 1

            @classmethod
            def c(cls):
                return 1
    ''')
    assert decorators_below(source) == textwrap.dedent('''
        def f(x):
            """Text."""
            return x
        f = expects(
            "x: number",
        )(torch.no_grad()(f))

        def plain():
            @inner
            def g():
                pass


        @dataclass(frozen=True)
        class C:
            a: int = 1

            def m(self, x):
                return x
            m = expects("x: text")(m)

            @property
            def p(self):
                return 1

            @classmethod
            def c(cls):
                return 1
    ''')


def test_the_rewritten_module_does_the_same():
    source = textwrap.dedent("""
        import torch

        @torch.no_grad()
        def double(x):
            return 2 * x

        class Doubler:
            factor = 2

            @torch.no_grad()
            def times(self, x):
                return self.factor * x
    """)
    x = torch.ones(1, requires_grad=True)
    for text in (source, decorators_below(source)):
        names = {}
        exec(text, names)
        for result in (names["double"](x), names["Doubler"]().times(x)):
            assert result.item() == 2 and not result.requires_grad


@pytest.mark.parametrize("ids, lost", [("", []), (", ids=str", [r"test_toy[\\d]"])])
def test_a_test_that_is_not_found_by_its_id_is_named(tmp_path, ids, lost):
    """Else all mutants of what it calls would count as killed."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_toy.py").write_text(
        "import pytest\n"
        rf"@pytest.mark.parametrize('x', ['a', r'\d']{ids})"
        "\ndef test_toy(x):\n    pass\n"
    )
    found = unfindable(["tests/test_toy.py"], tmp_path)
    assert found == [f"tests/test_toy.py::{name}" for name in lost]
