"""A Ray session costs ten seconds and more of starting processes: all tests share the run that they only look at."""

from pathlib import Path

import pytest
from command import TINY, Outcome, transloom


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    """Where all commands are given. The corpus in its outputs/ is prepared once."""
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="session")
def whole(place) -> Outcome:
    """The run that nothing disturbs, by which the others are measured."""
    return transloom(place, "run", *TINY, "name=whole")
