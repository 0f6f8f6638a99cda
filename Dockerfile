# Images for TPUs and for NVIDIA GPUs, as scripts/jobset.yaml runs them:
#
#     docker build --target=tpu --tag=deit-jax:tpu .
#     docker build --target=cuda --tag=deit-jax:cuda .
#
# The arguments of a container are those of `deit-jax train`.
FROM python:3.12-slim AS base
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
RUN useradd --create-home --uid=1000 deit
WORKDIR /home/deit/deit_jax
# Dependencies before code, which changes more often: the name and version are enough for them.
COPY setup.py setup.cfg pyproject.toml ./
RUN mkdir deit_jax configs && echo "__version__ = '0'" > deit_jax/__init__.py && touch README.md LICENSE

FROM base AS tpu
# hadolint ignore=DL3013
RUN pip install '.[data,tpu,gcs]'
COPY . .
# hadolint ignore=DL3013
RUN pip install --no-deps --editable .
USER 1000
ENTRYPOINT ["deit-jax", "train"]

FROM base AS cuda
# hadolint ignore=DL3013
RUN pip install '.[data,cuda,gcs]'
COPY . .
# hadolint ignore=DL3013
RUN pip install --no-deps --editable .
USER 1000
ENTRYPOINT ["deit-jax", "train"]
