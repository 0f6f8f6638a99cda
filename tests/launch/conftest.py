"""Worlds for the launchers' tests."""

import pytest
from launch.world import Cloud


@pytest.fixture
def cloud(tmp_path):
    worlds = []

    def make(**plan):
        worlds.append(Cloud(tmp_path / str(len(worlds)), **plan))
        return worlds[-1]

    yield make
    for world in worlds:
        world.end()
