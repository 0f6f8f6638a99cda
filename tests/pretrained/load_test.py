"""Starting from weights: reading, position embedding, heads, tokens, published files."""

import hashlib
import json

import jax
import numpy as np
import pytest
from reference.random_weights import random_state

from deit_jax import models, pretrained
from deit_jax.errors import ConfigError
from deit_jax.models import registry
from deit_jax.models.position import resize_position
from deit_jax.pretrained import convert, hub
from deit_jax.pretrained.formats import names
from deit_jax.pretrained.formats.safetensors_file import write_safetensors

# The model of tests/vectors/models_*.pth.
STORED = {"image_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 2, "num_heads": 2}


def tiny(*, distilled=False, classes=3, image_size=16, **kwargs):
    name = "deit_tiny_distilled_patch16_224" if distilled else "deit_tiny_patch16_224"
    size = STORED | {"image_size": image_size}
    return models.create_model(name, num_classes=classes, **size | kwargs)


def state_of(model, naming="timm"):
    table = names.entries(model, naming)
    return random_state({name: e.part_shape for e in table for name in e.names})


def variables_of(model, naming="timm"):
    return names.read(names.entries(model, naming), state_of(model, naming))


def loaded_from(tmp_path, model, **notes):
    path = tmp_path / "weights.safetensors"
    kwargs = {
        key: getattr(model, key)
        for key in (
            "num_classes",
            "image_size",
            "patch_size",
            "embed_dim",
            "depth",
            "num_heads",
            "distilled",
            "class_position",
            "layer_scale_init",
        )
    }
    described = {"model": {"name": "deit_tiny_patch16_224"} | kwargs} | notes
    write_safetensors(path, state_of(model), described)
    return pretrained.load_checkpoint(path)


def fresh(model):
    """A template whose every value differs from those of `state_of`."""
    abstract = models.abstract_variables(model)
    return jax.tree.map(lambda leaf: np.full(leaf.shape, 9.5, leaf.dtype), abstract)


def assert_equal_trees(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("file", ["models_zip.pth", "models_legacy.pth"])
def test_torch_files_are_read_as_torch_wrote_them(vectors, file):
    loaded = pretrained.load_checkpoint(vectors / file, model_kwargs={"num_heads": 2})
    model = loaded.create_model()
    assert model == tiny(distilled=True)
    assert_equal_trees(loaded.variables, variables_of(tiny(distilled=True)))
    assert (loaded.num_classes, loaded.format, loaded.class_names) == (3, "timm", None)


def test_model_can_be_named_when_shapes_do_not_tell(vectors):
    with pytest.raises(ConfigError, match="models_zip.pth: .*name a model, and its num_heads"):
        pretrained.load_checkpoint(vectors / "models_zip.pth")
    loaded = pretrained.load_checkpoint(
        vectors / "models_zip.pth", model="deit_tiny_distilled_patch16_224", model_kwargs=STORED
    )
    assert loaded.create_model() == tiny(distilled=True)


@pytest.mark.parametrize(
    "name",
    [
        "deit_tiny_patch16_224",
        "deit_tiny_distilled_patch16_224",
        "deit3_small_patch16_384",
        "regnety_002",
        "regnety_016",
    ],
)
@pytest.mark.parametrize("naming", ["timm", "facebook", "hf", "hf-modules"])
def test_registered_models_are_recognised(name, naming):
    from deit_jax.pretrained.formats import detect

    model = models.create_model(name, num_classes=11)
    if naming.startswith("hf") and "deit3" in name:
        return
    table = names.entries(model, naming)
    shapes = {n: e.part_shape for e in table for n in e.names}
    expected = {
        "facebook": "facebook" if "deit3" in name else "timm",
        "hf-modules": "hf" if "regnet" in name else "hf-modules",
    }.get(naming, naming)
    assert detect.naming_of(set(shapes)) == expected
    assert detect.guess_model(shapes, expected, {}) == (name, {"num_classes": 11})


def test_other_image_sizes_are_recognised():
    from deit_jax.pretrained.formats import detect

    model = models.create_model("deit_base_patch16_224", image_size=160)
    shapes = {e.names[0]: e.part_shape for e in names.entries(model, "timm")}
    assert detect.guess_model(shapes, "timm", {})[1] == {"num_classes": 1000, "image_size": 160}
    shapes["pos_embed"] = (1, 1 + 6, 768)
    with pytest.raises(ConfigError, match="6 patches is not square: name the image_size"):
        detect.guess_model(shapes, "timm", {})
    assert detect.guess_model(shapes, "timm", {"image_size": (32, 48)})[1]["image_size"] == (32, 48)


def test_all_problems_are_listed_at_once():
    model = tiny()
    state = state_of(model)
    del state["norm.bias"], state["blocks.1.attn.qkv.weight"]
    state["head.weight"] = state["head.weight"].T
    state["extra"] = np.zeros(3, np.float32)
    state["cls_token"] = np.zeros((1, 1, 8), np.int32)
    with pytest.raises(ConfigError) as caught:
        names.read(names.entries(model, "timm"), state)
    text = str(caught.value)
    for part in (
        "5 tensors",
        "missing norm.bias",
        "missing blocks.1.attn.qkv.weight",
        "unexpected extra",
        "head.weight is (8, 3), expected (3, 8)",
        "cls_token holds int32 values",
    ):
        assert part in text
    assert "\n" not in text
    state = state_of(model) | {"norm.bias": np.full(8, np.nan, np.float32)}
    with pytest.raises(ConfigError, match="norm.bias holds values that are not finite"):
        names.read(names.entries(model, "timm"), state)


def test_ema_weights_of_foreign_files(vectors, tmp_path):
    with pytest.raises(ConfigError, match="holds no EMA weights"):
        pretrained.load_checkpoint(vectors / "models_zip.pth", ema=True)


@pytest.mark.parametrize("grids", ["14x14_24x24", "24x24_14x14", "3x5_7x2", "1x2_3x3"])
def test_position_resize_equals_torch(vectors, grids):
    expected = np.load(vectors / "models_position.npz")[grids]
    old, new = (tuple(map(int, grid.split("x"))) for grid in grids.split("_"))
    from reference.random_weights import random_tensor

    grid = random_tensor(f"{old}", (1, 4, *old)).transpose(0, 2, 3, 1)
    found = resize_position(grid.reshape(1, -1, 4), old, new).reshape(expected.shape)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_position_resize_to_the_same_grid_is_the_identity():
    position = np.random.RandomState(0).randn(1, 6, 4).astype(np.float32)
    assert resize_position(position, (2, 3), (2, 3)) is position


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("class_position", [False, True])
def test_larger_images(tmp_path, distilled, class_position):
    kwargs = {"distilled": distilled, "class_position": class_position}
    loaded = loaded_from(tmp_path, tiny(**kwargs))
    model = tiny(image_size=(24, 40), **kwargs)
    variables, report = pretrained.adapt(loaded, model=model)
    assert report.resized == ("params/pos_embed",)
    assert report.initialized == report.dropped == ()
    assert "(2, 2) -> (3, 5)" in str(report)
    rows = (1 + distilled) if class_position else 0
    old, new = loaded.variables["params"]["pos_embed"], variables["params"]["pos_embed"]
    np.testing.assert_array_equal(new[:, :rows], old[:, :rows])
    np.testing.assert_array_equal(new[:, rows:], resize_position(old[:, rows:], (2, 2), (3, 5)))
    models.apply(model, variables, np.zeros((1, 24, 40, 3), np.float32))


def test_same_model_is_loaded_whole(tmp_path):
    loaded = loaded_from(tmp_path, tiny(distilled=True))
    found = pretrained.adapt(loaded, model=tiny(distilled=True))
    assert_equal_trees(found.variables, loaded.variables)
    assert len(found.report.loaded) == len(jax.tree.leaves(loaded.variables))
    assert str(found.report) == f"loaded {len(found.report.loaded)} arrays from {loaded.source}"


def test_head_of_other_classes_is_dropped_only_on_request(tmp_path):
    loaded = loaded_from(tmp_path, tiny(distilled=True))
    model = tiny(distilled=True, classes=5)
    with pytest.raises(
        ConfigError,
        match=r"head/kernel is \(8, 3\), the model has \(8, 5\) "
        r"\(drop_head initializes it\)",
    ):
        pretrained.adapt(loaded, fresh(model), model=model)
    variables, report = pretrained.adapt(loaded, fresh(model), model=model, drop_head=True)
    heads = {
        f"params/{head}/{leaf}" for head in ("head", "head_dist") for leaf in ("bias", "kernel")
    }
    assert set(report.dropped) == set(report.initialized) == heads
    assert "drop_head: the classification heads are initialized" in str(report)
    np.testing.assert_array_equal(
        variables["params"]["head"]["kernel"], fresh(model)["params"]["head"]["kernel"]
    )
    np.testing.assert_array_equal(
        variables["params"]["norm"]["scale"], loaded.variables["params"]["norm"]["scale"]
    )


def test_distilled_starts_plain(tmp_path):
    loaded = loaded_from(tmp_path, tiny(distilled=True))
    variables, report = pretrained.adapt(loaded, model=tiny())
    assert set(report.dropped) == {
        "params/dist_token",
        "params/head_dist/bias",
        "params/head_dist/kernel",
    }
    old = loaded.variables["params"]["pos_embed"]
    np.testing.assert_array_equal(variables["params"]["pos_embed"], old[:, [0, 2, 3, 4, 5]])


def test_plain_starts_distilled(tmp_path):
    loaded = loaded_from(tmp_path, tiny())
    model = tiny(distilled=True)
    variables, report = pretrained.adapt(loaded, fresh(model), model=model)
    assert set(report.initialized) == {
        "params/dist_token",
        "params/head_dist/bias",
        "params/head_dist/kernel",
    }
    old, new = loaded.variables["params"]["pos_embed"], variables["params"]["pos_embed"]
    np.testing.assert_array_equal(new[:, [0, 2, 3, 4, 5]], old)
    np.testing.assert_array_equal(new[:, 1], fresh(model)["params"]["pos_embed"][:, 1])
    with pytest.raises(ConfigError, match="template"):
        pretrained.adapt(loaded, model=model)


def test_another_architecture_is_refused(tmp_path):
    loaded = loaded_from(tmp_path, tiny())
    model = tiny(layer_scale_init=1e-4)
    with pytest.raises(ConfigError, match="missing params/blocks_0/gamma_1"):
        pretrained.adapt(loaded, fresh(model), model=model)
    with pytest.raises(ConfigError, match="unexpected params/blocks_1/norm1/bias"):
        pretrained.adapt(loaded, fresh(tiny(depth=1)), model=tiny(depth=1))


def test_published_files_are_fetched_checked_and_cached(tmp_path, monkeypatch, vectors):
    content = (vectors / "models_zip.pth").read_bytes()
    source = tmp_path / "there" / "model.pth"
    source.parent.mkdir()
    source.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()[:8]
    entry = hub.Published("some_model", source.as_uri(), digest, 0.0, 0.9)
    published = models.VisionTransformer, STORED | {"distilled": True, "drop_path_rate": 0.1}
    monkeypatch.setitem(registry.ARCHITECTURES, "some_model", published)
    monkeypatch.setenv("DEIT_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "PUBLISHED", {"some_model.tag": entry})
    loaded = pretrained.load_checkpoint("some_model.tag")
    assert loaded.create_model() == tiny(distilled=True) and not loaded.assumed
    source.unlink()
    pretrained.load_checkpoint("some_model.tag")
    for path in ("some_model.tag", tmp_path / "cache" / "model.pth"):
        for read in (pretrained.load_checkpoint, pretrained.describe):
            with pytest.raises(ConfigError, match="holds num_heads=2, not num_heads=4"):
                read(path, model_kwargs={"num_heads": 4})
    (tmp_path / "cache" / "model.pth").write_bytes(content[:-1])
    with pytest.raises(ConfigError, match=f"SHA-256 starts with .*not {digest}"):
        pretrained.load_checkpoint("some_model.tag")
    (tmp_path / "cache" / "model.pth").unlink()
    with pytest.raises(ConfigError, match="cannot download file:.*give its path"):
        pretrained.load_checkpoint("some_model.tag")
    assert list((tmp_path / "cache").iterdir()) == []


def test_published_table():
    assert {entry.model for entry in hub.PUBLISHED.values()} <= set(models.list_models())
    assert len({entry.url for entry in hub.PUBLISHED.values()}) == len(hub.PUBLISHED)
    name, entry = hub.find("deit_base_distilled_patch16_384")
    assert name == "deit_base_distilled_patch16_384.fb_in1k"
    assert entry.url.endswith("/deit_base_distilled_patch16_384-d0272ac0.pth")
    assert (entry.sha256, entry.top1, entry.crop_ratio) == ("d0272ac0", 85.224, 0.875)
    assert hub.find("deit3_huge_patch14_224.fb_in22k_ft_in1k")[1].crop_ratio == 1.0
    for registered in models.list_models("deit*"):
        assert hub.checkpoints_of(registered), f"{registered} has no line"


def test_unknown_names_are_told_the_known_ones():
    with pytest.raises(FileNotFoundError, match="known: .*deit_tiny_patch16_224.fb_in1k"):
        pretrained.load_checkpoint("deit_tiny_patch16_225")


def test_hugging_face_folder_tells_names_and_epsilon(tmp_path):
    source = loaded_from(tmp_path, tiny(distilled=True), class_names=["cat", "dog", "emu"])
    convert.save_hf(source, tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["id2label"] == {"0": "cat", "1": "dog", "2": "emu"}
    # As transformers itself would have written it: without our notes.
    from safetensors.numpy import load_file, save_file

    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    save_file(tensors, tmp_path / "hf" / "model.safetensors")
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-12}))
    loaded = pretrained.load_checkpoint(tmp_path / "hf")
    assert loaded.class_names == ("cat", "dog", "emu")
    assert loaded.create_model() == tiny(distilled=True, epsilon=1e-12)
    assert_equal_trees(loaded.variables, source.variables)
