"""For tests that damage files which orbax is reading."""

import gc

import pytest


@pytest.fixture
def dropped_reads_end_here():
    """Reads that orbax dropped may end after the test that damaged their files."""
    yield
    gc.collect()
