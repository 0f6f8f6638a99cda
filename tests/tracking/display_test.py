"""A bar where it can be drawn anew, lines everywhere else."""

import io
import sys
import types

import jax
import pytest

from deit_jax.tracking import display


class Terminal(io.StringIO):
    def isatty(self):
        return True


def show(monkeypatch, out):
    monkeypatch.setattr(sys, "stdout", out)
    shown = display.make_display(100, 10)
    shown.report(20, "step 20/100  loss 6.9")
    shown.say("eval  top-1 50 %")
    shown.report(30, "step 30/100  loss 6.8")
    shown.close()
    return out.getvalue()


def test_a_pipe_gets_lines_and_nothing_else(monkeypatch):
    text = show(monkeypatch, io.StringIO())
    assert text == "step 20/100  loss 6.9\neval  top-1 50 %\nstep 30/100  loss 6.8\n"


def test_a_terminal_gets_a_bar_below_the_lines_that_stay(monkeypatch):
    text = show(monkeypatch, Terminal())
    # What stays on the screen: of each line, what came after the last return.
    stays = [line.split("\r")[-1].strip() for line in text.rstrip("\n").split("\n")]
    assert stays[0] == "eval  top-1 50 %" and len(stays) == 2
    assert stays[1].startswith(" 30%|".strip()) and stays[1].endswith("step 30/100  loss 6.8")


def test_a_notebook_gets_a_bar(monkeypatch):
    shell = types.SimpleNamespace(kernel=object())
    ipython = types.SimpleNamespace(get_ipython=lambda: shell, version_info=(9, 0))
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    assert "\r" in show(monkeypatch, io.StringIO())
    monkeypatch.setattr(ipython, "get_ipython", lambda: None)
    assert "\r" not in show(monkeypatch, io.StringIO())


@pytest.mark.parametrize("out", [io.StringIO, Terminal])
def test_other_processes_show_nothing(monkeypatch, out):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert show(monkeypatch, out()) == ""
