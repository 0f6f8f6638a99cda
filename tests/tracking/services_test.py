"""Services that metrics are sent to, as stand-ins: one run there per workdir, resumed with it."""

import json
import logging
import sys
import types

import pytest

from deit_jax.tracking import writers

SETTINGS = {"seed": 3, "model": {"name": "deit"}}


class Service:
    """What the packages have in common: every call is noted, in order."""

    def __init__(self):
        self.calls = []

    def noted(self, name, answer=None):
        def call(*args, **options):
            self.calls.append((name, args, options))
            return answer

        return call

    def named(self, name):
        return [(args, options) for called, args, options in self.calls if called == name]


def wandb(service):
    methods = {name: service.noted(name) for name in ("log", "finish")}
    run = types.SimpleNamespace(id="run-1", **methods)
    return types.SimpleNamespace(init=service.noted("init", run))


def mlflow(service):
    run = types.SimpleNamespace(info=types.SimpleNamespace(run_id="run-1"))
    methods = ("set_experiment", "log_params", "log_metrics", "end_run")
    return types.SimpleNamespace(
        start_run=service.noted("init", run),
        MlflowException=type("MlflowException", (Exception,), {}),
        **{name: service.noted(name) for name in methods},
    )


def comet_ml(service):
    methods = ("log_parameters", "log_metrics", "end")
    experiment = types.SimpleNamespace(
        get_key=lambda: "run-1", **{name: service.noted(name) for name in methods}
    )
    return types.SimpleNamespace(start=service.noted("init", experiment))


# By tracker: package, stand-in, and what names, feeds and ends a run there.
FAKES = {
    "wandb": ("wandb", wandb, "id", "log", "finish"),
    "mlflow": ("mlflow", mlflow, "run_id", "log_metrics", "end_run"),
    "comet": ("comet_ml", comet_ml, "experiment_key", "log_metrics", "end"),
    "trackio": ("trackio", wandb, "name", "log", "finish"),
}


@pytest.fixture(params=sorted(FAKES))
def tracker(request, monkeypatch):
    package, make, *names = FAKES[request.param]
    service = Service()
    monkeypatch.setitem(sys.modules, package, make(service))
    return request.param, service, *names


def test_every_service_has_a_stand_in():
    assert set(writers.TRACKERS) == {"tensorboard", "notebook", *FAKES}


def test_a_workdir_is_one_run_of_the_service(tmp_path, tracker):
    name, service, key, log, end = tracker
    for step in (1, 2):
        options = {"trackers": (name,), project(name): "mine"}
        with writers.MetricsWriter(tmp_path / "run", step - 1, SETTINGS, **options) as writer:
            writer.write(step, {"train/loss": 0.5 * step})
    first, second = (options[key] for _, options in service.named("init"))
    if name == "trackio":
        assert first == second and first.startswith("run-")
    else:
        assert (first, second) == (None, "run-1")
    assert service.named(log) == [
        (({"train/loss": 0.5},), {"step": 1}),
        (({"train/loss": 1.0},), {"step": 2}),
    ]
    assert len(service.named(end)) == 2
    assert "mine" in json.dumps(service.calls), "the project of the config"
    assert "deit" in json.dumps(service.calls), "the settings of the run"


def project(name):
    return "mlflow_experiment" if name == "mlflow" else f"{name}_project"


def test_a_server_that_is_away_does_not_end_the_run(tmp_path, monkeypatch, caplog):
    module = mlflow(Service())

    def fail(*_, **__):
        raise module.MlflowException("503")

    module.log_metrics = fail
    monkeypatch.setitem(sys.modules, "mlflow", module)
    with caplog.at_level(logging.ERROR):
        with writers.MetricsWriter(tmp_path, trackers=("mlflow",)) as writer:
            writer.write(1, {"loss": 1.0})
    assert "MlflowTracker: metrics of step 1 not written: 503" in caplog.text
    assert '"loss": 1.0' in (tmp_path / "metrics.jsonl").read_text()
