"""A Ray session costs ten seconds and more of starting processes: all tests share the run that they only look at."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import TINY, Outcome, transloom
from mlflow_database import give_database


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    """Where all commands are given. The corpus in its outputs/ is prepared once."""
    folder = tmp_path_factory.mktemp("place")
    give_database(tmp_path_factory, folder / "outputs" / "mlflow.db")
    return folder


@pytest.fixture(scope="session")
def whole(place) -> Outcome:
    """The run that nothing disturbs, by which the others are measured."""
    return transloom(place, "run", *TINY, "name=whole")


@pytest.fixture
def one_core() -> Iterator[None]:
    """For this test's commands: each program then has one way of using its cores, so that fewer processes start, and no
    threads wait for each other where other tests have the cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    yield
    os.sched_setaffinity(0, before)
