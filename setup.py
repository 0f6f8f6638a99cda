"""Puts the recipes of configs/ into the package; setup.cfg has everything else."""

from setuptools import find_packages, setup

# Where deit_jax/config_file.py looks for them when there is no checkout around it.
RECIPES = "deit_jax.shipped.configs"

setup(packages=[*find_packages(include=["deit_jax*"]), RECIPES], package_dir={RECIPES: "configs"})
