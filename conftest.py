"""How pytest treats the notebooks (nbval does the running); what the unit tests need is in tests/conftest.py.

It stands here because pytest asks a conftest.py only about files below its own folder.
"""

import os

import pytest
from nbval.plugin import IPyNbCell, IPyNbFile

FIRST_FAILED = pytest.StashKey[str]()


def pytest_configure():
    """Undo settings of the caller that notebook kernels would inherit, and keep tests off the network."""
    os.environ.pop(
        "MPLBACKEND", None
    )  # Agg, common on servers, would leave the notebooks without figures
    os.environ.setdefault(
        "HF_HUB_OFFLINE", "1"
    )  # transformers is a test oracle with weights made here


def pytest_collectstart(collector):
    """Compare no standard error: whether a stage is built and shows its progress depends on the store."""
    if isinstance(collector, IPyNbFile):
        collector.skip_compare += ("stderr",)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Skip a cell if an earlier one of its notebook failed: it would fail for want of that cell's names."""
    failed = item.parent.stash.get(FIRST_FAILED, None)
    if isinstance(item, IPyNbCell) and failed:
        pytest.skip(f"{item.path.name}: {failed} failed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Remember the first failed cell of each notebook."""
    report = yield
    if isinstance(item, IPyNbCell) and report.failed:
        item.parent.stash.setdefault(FIRST_FAILED, item.name)
    return report
