"""How a run shows its progress: a bar on a terminal and in a notebook, plain lines elsewhere.

Only process 0 shows anything. A log file, a pipe and `nohup` get lines.
"""

import sys
import warnings
from typing import Protocol, TextIO

import jax


class Display(Protocol):
    """Where the lines of a run go."""

    def say(self, text: str) -> None:
        """A line that stays."""
        ...

    def report(self, step: int, line: str) -> None:
        """The progress after `step`; on a bar it takes the place of the one before."""
        ...

    def close(self) -> None: ...


class Lines:
    """Every line stays."""

    def say(self, text: str) -> None:
        print(text, flush=True)

    def report(self, step: int, line: str) -> None:
        self.say(line)

    def close(self) -> None:
        pass


class Silent:
    """Of the processes other than 0."""

    def say(self, text: str) -> None:
        pass

    def report(self, step: int, line: str) -> None:
        pass

    def close(self) -> None:
        pass


class Bar:
    """A bar of tqdm with the newest progress, below the lines that stay."""

    def __init__(self, total_steps: int, start_step: int, out: TextIO, bar: str) -> None:
        with warnings.catch_warnings():
            # In a notebook without ipywidgets it is a bar of text.
            warnings.simplefilter("ignore")
            from tqdm.auto import tqdm

            form = f"{{percentage:3.0f}}%|{bar}| {{desc}}"
            options = {"bar_format": form, "dynamic_ncols": True, "file": out}
            self._bar = tqdm(total=total_steps, initial=start_step, **options)
        self._out = out

    def say(self, text: str) -> None:
        self._bar.write(text, file=self._out)

    def report(self, step: int, line: str) -> None:
        self._bar.n = step
        self._bar.set_description_str(line, refresh=False)
        self._bar.refresh()

    def close(self) -> None:
        self._bar.close()


def make_display(total_steps: int, start_step: int) -> Display:
    """The display of this process, by what its standard output is.

    Args:
      total_steps: length of the run.
      start_step: step from which the run starts or resumes.
    """
    if jax.process_index() != 0:
        return Silent()
    if in_notebook():
        return Bar(total_steps, start_step, sys.stdout, "{bar}")
    if sys.stdout.isatty():
        return Bar(total_steps, start_step, sys.stdout, "{bar:20}")
    return Lines()


def in_notebook() -> bool:
    """Whether this is the process of a notebook, whose shell has a kernel."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")
