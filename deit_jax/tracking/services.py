"""Trackers that send the metrics to a service: one run there per workdir, resumed with it.

The id of the service's run is in the workdir. Who is logged in, where the server is, tags and
names of runs are the service's own settings: its environment variables and files.
"""

import importlib
import tempfile
import uuid
from collections.abc import Mapping
from typing import Any

from deit_jax import config as config_lib
from deit_jax import storage
from deit_jax.errors import ConfigError


def _package(tracker: str, module: str, package: str) -> Any:
    """The module of a service.

    Raises:
      ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"config.log.trackers={tracker} needs the {package} package ({error}): "
            f"pip install {package}"
        ) from error


def _stored(file: storage.Path) -> str | None:
    return file.read_text().strip() if file.exists() else None


class WandbTracker:
    """Weights & Biases (https://wandb.ai).

    `WANDB_MODE=offline`, `WANDB_ENTITY`, `WANDB_NAME`, `WANDB_RUN_GROUP`, `WANDB_TAGS` and the
    other variables of wandb hold here.
    """

    def __init__(
        self,
        workdir: storage.Path,
        resume_step: int = 0,
        config: Mapping[str, Any] | None = None,
        *,
        wandb_project: str = "deit_jax",
    ) -> None:
        wandb = _package("wandb", "wandb", "wandb")
        id_file = workdir / "wandb_id"
        self._run = wandb.init(
            project=wandb_project,
            config=dict(config or {}),
            # Its own files are copies of what it sends.
            dir=tempfile.gettempdir() if storage.is_remote(workdir) else str(workdir),
            id=_stored(id_file),
            resume="allow",
        )
        storage.write(id_file, self._run.id)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class MlflowTracker:
    """MLflow (https://mlflow.org); the server is that of `MLFLOW_TRACKING_URI`."""

    def __init__(
        self,
        workdir: storage.Path,
        resume_step: int = 0,
        config: Mapping[str, Any] | None = None,
        *,
        mlflow_experiment: str = "deit_jax",
    ) -> None:
        self._mlflow = _package("mlflow", "mlflow", "mlflow")
        self._mlflow.set_experiment(mlflow_experiment)
        id_file = workdir / "mlflow_id"
        before = _stored(id_file)
        name = {} if before else {"run_name": workdir.name}
        run = self._mlflow.start_run(run_id=before, **name)
        storage.write(id_file, run.info.run_id)
        if before is None:
            # MLflow refuses a setting that changes, and one that is longer than it stores.
            settings = config_lib.flatten(config or {})
            self._mlflow.log_params({key: str(value)[:500] for key, value in settings.items()})

    def write(self, step: int, values: Mapping[str, float]) -> None:
        try:
            self._mlflow.log_metrics(dict(values), step=step)
        except self._mlflow.MlflowException as error:
            # A server that is away must not end a run that computes and saves.
            raise OSError(str(error)) from error

    def close(self) -> None:
        self._mlflow.end_run()


class CometTracker:
    """Comet (https://comet.com); the key is that of `COMET_API_KEY`."""

    def __init__(
        self,
        workdir: storage.Path,
        resume_step: int = 0,
        config: Mapping[str, Any] | None = None,
        *,
        comet_project: str = "deit_jax",
    ) -> None:
        comet = _package("comet", "comet_ml", "comet_ml")
        id_file = workdir / "comet_id"
        options = {"experiment_key": _stored(id_file), "mode": "get_or_create"}
        self._experiment = comet.start(project_name=comet_project, **options)
        storage.write(id_file, self._experiment.get_key())
        self._experiment.log_parameters(config_lib.flatten(config or {}))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._experiment.log_metrics(dict(values), step=step)

    def close(self) -> None:
        self._experiment.end()


class TrackioTracker:
    """Trackio (https://github.com/gradio-app/trackio), on this machine without an account."""

    def __init__(
        self,
        workdir: storage.Path,
        resume_step: int = 0,
        config: Mapping[str, Any] | None = None,
        *,
        trackio_project: str = "deit_jax",
    ) -> None:
        trackio = _package("trackio", "trackio", "trackio")
        id_file = workdir / "trackio_id"
        # Trackio finds a run by its name, which two folders may share.
        name = _stored(id_file) or f"{workdir.name}-{uuid.uuid4().hex[:8]}"
        storage.write(id_file, name)
        settings = config_lib.flatten(config or {})
        self._run = trackio.init(
            project=trackio_project, name=name, config=settings, resume="allow"
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()
