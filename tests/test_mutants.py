import textwrap

import torch
from mutants import decorators_below


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
