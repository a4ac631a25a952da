"""How pytest treats the notebooks (nbval does the running), and what it prints.

What the unit tests need is in tests/conftest.py. This file stands here because pytest
asks a conftest.py only about files below its own folder.
"""

import os
import time
from collections import Counter

import pytest
from filelock import FileLock
from nbval.plugin import IPyNbCell, IPyNbFile

FIRST_FAILED = pytest.StashKey[str]()
HAS_KERNEL = pytest.StashKey[bool]()


@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    """Undo what notebook kernels would inherit, keep tests off the network."""
    # Agg, common on servers, would leave the notebooks without figures.
    os.environ.pop("MPLBACKEND", None)
    # transformers is a test oracle with weights made here.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if config.pluginmanager.hasplugin("dsession") and config.option.verbose <= 0:
        config.pluginmanager.register(FileLines(config), "file_lines")


def pytest_collectstart(collector):
    """Compare no standard error: a stage's progress depends on the store."""
    if isinstance(collector, IPyNbFile):
        collector.skip_compare += ("stderr",)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_setup(item):
    """Skip a cell if an earlier one of its notebook failed; start one kernel at a time.

    A later cell would fail for want of the earlier one's names. A kernel's ports are
    chosen before it takes them, so two that start at once could choose the same.
    """
    if not isinstance(item, IPyNbCell):
        return (yield)
    if failed := item.parent.stash.get(FIRST_FAILED, None):
        pytest.skip(f"{item.path.name}: {failed} failed")
    if item.parent.stash.get(HAS_KERNEL, False):
        return (yield)
    folder = item.config.rootpath / "build/test"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "kernel.lock"):
        result = yield
    item.parent.stash[HAS_KERNEL] = True
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Remember the first failed cell of each notebook."""
    report = yield
    if isinstance(item, IPyNbCell) and report.failed:
        item.parent.stash.setdefault(FIRST_FAILED, item.name)
    return report


class FileLines:
    """A line when a file starts and one when it is done, in place of pytest's dots.

    With several workers dots would come from everywhere, and a stage that trains for
    minutes would look like a standstill. `-v` brings back pytest's own lines.
    """

    def __init__(self, config):
        self.terminal = config.pluginmanager.getplugin("terminalreporter")
        self.left, self.started, self.outcomes = Counter(), {}, {}

    def pytest_xdist_node_collection_finished(self, ids):
        """Count the tests of each file; every worker collects the same."""
        self.left = Counter(map(file_of, ids))

    def pytest_runtest_logstart(self, nodeid):
        """Say that a file has started."""
        name = file_of(nodeid)
        if name not in self.started:
            self.started[name], self.outcomes[name] = time.perf_counter(), Counter()
            self.terminal.write_line(f"         {name} …")

    @pytest.hookimpl(wrapper=True)
    def pytest_report_teststatus(self):
        """Print no letter; the category stays, so that the summary counts the test."""
        category, _, word = yield
        return category, "", word

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report):
        """Count outcomes, and say what became of the file after its last test."""
        name = file_of(report.nodeid)
        if report.when == "call" or not report.passed:
            self.outcomes[name][report.outcome] += 1
        if report.failed:
            self.terminal.write_line(f"  FAILED {report.nodeid}", red=True)
        if report.when == "teardown":
            self.left[name] -= 1
            if self.left[name] == 0:
                seconds = time.perf_counter() - self.started[name]
                counts = sorted(self.outcomes[name].items())
                summary = ", ".join(f"{count} {outcome}" for outcome, count in counts)
                self.terminal.write_line(f"{seconds:6.0f} s {name}: {summary}")


def file_of(nodeid):
    """The file of a test, as pytest names it."""
    return nodeid.split("::")[0]
