"""What `auto` chooses where a run is resumed, beside what it chose where the run began."""

import types

import pytest
import tiny_runs

from deit_jax.recipe.recipe import make_recipe
from deit_jax.tracking import starts
from deit_jax.train import moved


def gpu(kind, capability):
    return types.SimpleNamespace(
        platform="gpu", device_kind=kind, compute_capability=capability, memory_stats=lambda: None
    )


T4, A100 = gpu("Tesla T4", "7.5"), gpu("NVIDIA A100-SXM4-40GB", "8.0")


def recipe(device, *overrides):
    config = tiny_runs.load("finetune.py:s", "data.source=digits", *overrides)
    return make_recipe(config, records=100, num_classes=3, device=device)


@pytest.fixture
def begun_on_a100(tmp_path):
    moved.record(tmp_path, 0, 1000.0, recipe(A100))
    return tmp_path


def test_a_start_says_what_it_ran_on(begun_on_a100):
    assert starts.read(begun_on_a100) == [
        {
            "step": 0,
            "time": 1000.0,
            "device": "NVIDIA A100-SXM4-40GB (compute capability 8.0)",
            "model.dtype": "bfloat16",
            "model.attention": "cudnn",
        }
    ]


def test_another_choice_is_one_sentence_that_says_how_to_keep_the_old(begun_on_a100):
    was = "where this run began (NVIDIA A100-SXM4-40GB (compute capability 8.0)) and is"
    assert moved.notices(begun_on_a100, recipe(T4)) == [
        f"notice: config.model.dtype=auto was bfloat16 {was} float32 on this Tesla T4 (compute "
        "capability 7.5); to keep bfloat16: --config.model.dtype=bfloat16 --force_resume",
        f"notice: config.model.attention=auto was cudnn {was} xla on this Tesla T4 (compute "
        "capability 7.5); cudnn cannot run here",
    ]
    moved.record(begun_on_a100, 50, 2000.0, recipe(T4))
    assert len(moved.notices(begun_on_a100, recipe(T4))) == 2, "it began elsewhere all the same"


def test_the_same_choice_or_the_users_own_is_no_news(begun_on_a100):
    assert moved.notices(begun_on_a100, recipe(A100)) == []
    assert moved.notices(begun_on_a100, recipe(gpu("NVIDIA H100", "9.0"))) == []
    fixed = recipe(T4, "model.dtype=float32", "model.attention=xla")
    assert moved.notices(begun_on_a100, fixed) == []


def test_a_run_without_a_record_is_resumed_in_silence(tmp_path):
    assert moved.notices(tmp_path, recipe(T4)) == []


def test_the_remedy_is_accepted(tmp_path, compilation_cache, monkeypatch, capsys):
    tiny_runs.make_cheap(monkeypatch)
    options = (compilation_cache, "log.trackers=", "model.depth=1")

    def start(*more, **flags):
        config = tiny_runs.tiny("quickstart.py:plain", *options, "model.dtype=auto", *more)
        tiny_runs.loop.train(config, workdir=str(tmp_path), **flags)
        return capsys.readouterr().out

    assert "notice" not in start("train.stop_at_step=1")
    record = (tmp_path / "starts.jsonl").read_text()
    assert '"model.dtype": "float32"' in record
    (tmp_path / "starts.jsonl").write_text(record.replace("float32", "bfloat16"))
    assert "notice: config.model.dtype=auto was bfloat16 where" in start("train.stop_at_step=2")
    kept = start("model.dtype=bfloat16", force_resume=True)
    assert "auto was" not in kept and "resuming after step 2 of 3" in kept
    assert len(starts.read(tmp_path)) == 3
