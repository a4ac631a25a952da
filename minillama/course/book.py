"""The course as a book: web pages of the notebooks, to be read without Python.

    python -m minillama.course.book [--out build/book]      (make book)

Sphinx reads the notebooks through myst-nb. Nothing is run: outputs are those that were
committed. The pages load nothing from elsewhere, so that the folder can be opened
without a network, put on a stick or on any web server: MathJax lies beside them.
Left out: the widgets' sliders, which need a kernel.
"""

import argparse
import hashlib
import importlib.util
import io
import shutil
import sys
import tempfile
from pathlib import Path

from minillama.course import sync

OUT = sync.PROJECT / "build/book"
# MathJax 3.2.2, from the PyPI package django-static-mathjax 3.2.2.1.
MATHJAX = "mathjax/tex-chtml.js"
SHA256 = "9b5ae004241a76ab35468a2b8cc567774cfd919f3788c29de17dc1fba95bbe06"
SETTINGS = {
    "project": "minillama",
    "html_title": "minillama",
    "extensions": ["myst_nb"],
    "nb_execution_mode": "off",
    "nb_ipywidgets_js": {},  # they would come from the network
    "myst_enable_extensions": ["dollarmath", "amsmath"],
    "html_theme": "sphinx_book_theme",
    "html_theme_options": {
        "footer_content_items": [],
        "home_page_in_toc": True,
        "navbar_persistent": [],  # the search field is in the sidebar
        "use_download_button": False,
    },
    "html_context": {"default_mode": "auto"},  # light or dark as the reader has it
    "html_static_path": ["static"],
    "html_css_files": ["book.css"],
    "html_copy_source": False,
    "html_show_search_summary": False,  # a page on disk may not read other pages
    "mathjax_path": MATHJAX,
}
CSS = """/* 88 columns of code */
div.cell pre { font-size: 0.78em; }

/* figures are on white paper: a little darker in the dark, in their own colours */
html[data-theme="dark"] .bd-content div.cell_output img[src] {
  background: none; padding: 0; border-radius: 3px; filter: brightness(0.85);
}
"""
INDEX = """# minillama

RLHF from scratch, as a course of notebooks: a small LLaMA written by hand learns a
language, learns to answer, is given two reward models, and is aligned by PPO. The
numbers and figures on these pages are those that the notebooks printed.

```{toctree}
:titlesonly:

"""


def mathjax():
    """Return the folder of the installed MathJax; its script must be the known one."""
    spec = importlib.util.find_spec("mathjax")
    folder = Path(spec.origin).parent / "static/mathjax/es5"
    found = hashlib.sha256((folder / Path(MATHJAX).name).read_bytes()).hexdigest()
    if found != SHA256:
        raise ValueError(f"MathJax must have the SHA-256 {SHA256}, got {found}")
    return folder


def write_source(folder, notebooks):
    """Write what Sphinx reads: notebooks, a first page with the contents, MathJax."""
    for path in notebooks:
        shutil.copy(path, folder)
    names = "\n".join(path.stem for path in notebooks)
    (folder / "index.md").write_text(f"{INDEX}{names}\n```\n", encoding="utf-8")
    shutil.copytree(mathjax(), folder / "static" / Path(MATHJAX).parent)
    (folder / "static/book.css").write_text(CSS, encoding="utf-8")


def build(out, notebooks):
    """Write the book, over an earlier one; return what Sphinx warned of."""
    from sphinx.application import Sphinx  # comes with `make book`

    warnings = io.StringIO()
    with tempfile.TemporaryDirectory() as source:
        write_source(Path(source), notebooks)
        places = source, None, out, f"{source}/doctrees"
        Sphinx(*places, "html", SETTINGS, status=None, warning=warnings).build()
    return warnings.getvalue()


def main(arguments=None, project=sync.PROJECT):
    """The command line; the exit status is 1 if Sphinx had something to warn of."""
    parser = argparse.ArgumentParser(
        prog="python -m minillama.course.book", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--out", type=Path, default=OUT, help="the folder")
    options = parser.parse_args(arguments)
    warnings = build(options.out, sorted(project.glob("notebooks/*.ipynb")))
    print(warnings, end="", file=sys.stderr)
    print(f"the book: {options.out / 'index.html'}")
    return int(bool(warnings))


if __name__ == "__main__":
    sys.exit(main())
