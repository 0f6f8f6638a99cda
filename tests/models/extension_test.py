"""A family that is neither DeiT nor RegNet needs its class and a row of the table, nothing else."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs

from deit_jax import cli, models, optim, pretrained
from deit_jax.errors import ConfigError
from deit_jax.models import Model, Output, layers, registry
from deit_jax.pretrained import convert
from deit_jax.train import loop, schema


class Mixer(Model, kw_only=True):
    """MLP-Mixer (arXiv 2105.01601)."""

    patch_size: int
    width: int
    depth: int = 1

    def check(self):
        layers.check_values(self, sizes=("patch_size", "width", "depth"))
        if any(side % self.patch_size for side in self.image_size):
            raise ConfigError(f"image_size {self.image_size} is not a multiple of patch_size")

    @nn.compact
    def __call__(self, image, *, train=False, keys=None, capture=False):
        x = layers.PatchEmbed(self.patch_size, self.width, self.dtype, name="stem")(image)
        features = {}
        for i in range(self.depth):
            y = layers.LayerNorm(self.dtype, 1e-6, name=f"norm{i}")(x).swapaxes(1, 2)
            x = x + layers.Dense(x.shape[1], self.dtype, name=f"tokens{i}")(y).swapaxes(1, 2)
            x = x + nn.gelu(layers.Dense(self.width, self.dtype, name=f"channels{i}")(x))
            features[f"block{i}"] = x
        logits = layers.Dense(self.num_classes, jnp.float32, name="head")(x.mean(1))
        return Output(logits, None), features if capture else {}


NAME = "mixer_nano_patch8_32"
CONFIG = f"""\
from configs import common, quickstart


def get_config():
    config = quickstart.get_config("plain")
    config.model = {{"name": "{NAME}"}}
    return common.tiny(config)
"""


@pytest.fixture
def mixer(monkeypatch):
    row = Mixer, {"image_size": 32, "patch_size": 8, "width": 16}
    monkeypatch.setitem(registry.ARCHITECTURES, NAME, row)
    return models.create_model(NAME, num_classes=10)


@pytest.fixture
def spec(tmp_path):
    path = tmp_path / "mixer.py"
    path.write_text(CONFIG)
    return str(path)


def test_it_is_registered_counted_and_costed(mixer):
    assert NAME in models.list_models("mixer*")
    embed, tokens, channels, head = 192 * 16 + 16, 16 * 16 + 16, 16 * 16 + 16, 16 * 10 + 10
    macs = 16 * 192 * 16 + 2 * 16 * 16 * 16 + 16 * 10
    assert mixer.count() == (embed + 2 * 16 + tokens + channels + head, macs)
    # At least what the three layers in f32 give, at most some copies of it.
    assert 1 <= mixer.saved_bytes() / (4 * (3 * 16 * 16 + 10)) <= 4
    assert mixer.clone(dtype="bfloat16").saved_bytes() == mixer.saved_bytes() / 2
    assert mixer.heads == ("class",) and not mixer.stochastic and not mixer.has_batch_stats


def test_its_options_are_its_attributes(mixer, spec):
    options = {"name", "image_size", "dtype", "patch_size", "width", "depth"}
    assert set(schema.load(spec).model) == options
    with pytest.raises(ConfigError, match=r"unknown key config\.model\.num_heads"):
        schema.load(spec, ["model.num_heads=2"])
    with pytest.raises(ConfigError, match="not a multiple of patch_size"):
        models.create_model(NAME, image_size=36)
    with pytest.raises(ConfigError, match="width must be at least 1, not 0"):
        models.create_model(NAME, width=0)
    with pytest.raises(TypeError, match="takes no attention"):
        models.create_model(NAME, attention="xla")


@pytest.mark.long
def test_it_is_explained_trained_evaluated_saved_and_resumed(
    mixer, spec, tmp_path, compilation_cache, monkeypatch, capsys
):
    tiny_runs.on_one_device(monkeypatch)
    monkeypatch.setattr(loop.pictures, "draw", lambda *_: None)
    options = [compilation_cache, "train.total_steps=2", "eval.batch_size=120"]
    arguments = [f"--config.{option}" for option in options]
    assert cli.main(["explain", f"--config={spec}", *arguments]) == 0
    lines = capsys.readouterr().out
    assert f"{NAME} at 32x32" in lines
    assert f"{mixer.count().parameters:,} parameters" in lines

    workdir = tmp_path / "run"
    first = tiny_runs.train(schema.load(spec, [*options, "train.stop_at_step=1"]), workdir)
    results = tiny_runs.train(schema.load(spec, options), workdir)
    assert first["eval/count"] == results["eval/count"] == 355
    assert first["eval/class/loss"] != results["eval/class/loss"]
    assert "eval_ema/class/top1" in results and "eval/dist/top1" not in results

    loaded = pretrained.load_checkpoint(workdir)
    assert loaded.create_model() == mixer
    variables = pretrained.adapt(loaded, model=mixer).variables
    output, features = models.apply(mixer, variables, np.zeros((2, 32, 32, 3)), capture=True)
    assert output.logits.shape == (2, 10) and set(features) == {"block0"}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))
    assert cli.main(["evaluate", f"--checkpoint={workdir}"]) == 0
    assert f"{100 * results['eval/class/top1']:.3f}" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="Mixer has no names in other libraries"):
        convert.convert(workdir, tmp_path / "mixer.safetensors")


class NumberedMixer(Mixer, kw_only=True):
    """One with layers for layer decay and a parameter of its own."""

    num_layers = 2
    no_weight_decay = ("gate",)

    def layer_of(self, path):
        return {"stem": 0, "gate": 0, "head": 2}.get(path.split("/")[0], 1)


def test_it_numbers_its_layers_and_exempts_its_parameters(mixer):
    params = dict(models.abstract_variables(mixer)["params"], gate=jnp.ones((1, 1, 16)))
    model = NumberedMixer(num_classes=10, image_size=(32, 32), patch_size=8, width=16)
    with pytest.raises(ConfigError, match="rule for parameter 'gate'"):
        optim.decay_groups(params, mixer)
    with pytest.raises(ConfigError, match="layer_decay needs a model with numbered layers"):
        optim.decay_groups(models.abstract_variables(mixer)["params"], mixer, layer_decay=0.5)
    groups = optim.decay_groups(params, model, layer_decay=0.5)
    found = {path: (group.lr_scale, group.decay) for group in groups for path in group.paths}
    assert found["gate"] == (0.25, 0.0) and found["stem/kernel"] == (0.25, 0.05)
    assert found["tokens0/kernel"] == (0.5, 0.05) and found["head/kernel"] == (1.0, 0.05)
