"""Twenty training steps from the same weights and batches as torch with timm's models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import trajectory_data as data

from deit_jax import builders, losses, models, optim, trees
from deit_jax.train import step as step_lib

TOLERANCE = 1e-3


def our_path(name: str) -> str:
    """Path in our tree of timm's parameter `name`."""
    path = name.replace("blocks.", "blocks_").replace("patch_embed.proj", "patch_embed").split(".")
    if path[-1] == "weight":
        path[-1] = "scale" if "norm" in path[-2] else "kernel"
    return "/".join(path)


def our_layout(value: np.ndarray, name: str) -> np.ndarray:
    if name == "patch_embed.proj.weight":
        return value.transpose(2, 3, 1, 0)
    return value.T if value.ndim == 2 else value


def learned(value: np.ndarray, name: str) -> np.ndarray:
    """Leaves out the bias of the keys, whose gradient is zero but for rounding.

    It adds the same to all scores of a query, which the softmax ignores; Adam divides
    the rounding noise by its own size, so that no two programs move it alike.
    """
    if name.endswith("attn.qkv.bias"):
        return np.delete(value, slice(data.DIM, 2 * data.DIM))
    return value


def small_model(name: str):
    return models.create_model(
        name,
        num_classes=data.CLASSES,
        image_size=data.IMAGE,
        patch_size=data.PATCH,
        embed_dim=data.DIM,
        depth=data.DEPTH,
        num_heads=data.HEADS,
        drop_path_rate=0.0,
    )


def variables(shapes, *, seed):
    nested = {}
    for name, value in data.weights(shapes, seed=seed).items():
        *parents, leaf = our_path(name).split("/")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = jnp.asarray(our_layout(value, name))
    return {"params": nested}


@pytest.fixture(scope="module")
def stored(vectors):
    return dict(np.load(vectors / "trajectory.npz"))


def final_of(stored, variant):
    prefix = f"{variant}/final/"
    return {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}


def train(stored, variant):
    """Losses [steps, 3] (total, label, distillation) and the final parameters by path."""
    options = dict(zip(("distillation", "alpha", "tau"), data.VARIANTS[variant], strict=True))
    plain, distilled = "deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"
    student = small_model(plain if variant == "plain" else distilled)
    teacher = small_model(plain)
    shapes = {name: value.shape for name, value in final_of(stored, variant).items()}
    start = variables(shapes, seed=1)
    rates = jnp.asarray([data.rate(step) for step in range(data.STEPS)], jnp.float32)
    tx = optim.make_optimizer(
        start["params"], lambda step: rates[step], weight_decay=data.WEIGHT_DECAY
    )
    teacher_shapes = {name: value.shape for name, value in final_of(stored, "plain").items()}
    teacher_variables = {} if variant == "plain" else variables(teacher_shapes, seed=2)
    step = jax.jit(
        step_lib.make_train_step(
            student,
            lambda key, batch: dict(batch),
            builders.bind(losses.make_loss, options)(),
            tx,
            lambda step: rates[step],
            jax.random.key(0),
            None
            if variant == "plain"
            else lambda weights, image: models.apply(teacher, weights, image).logits,
        ),
        # Compiles faster; the steps are few.
        compiler_options={"xla_backend_optimization_level": 0},
    )
    state = step_lib.init_state(student, tx, jax.random.key(0), ema=False, variables=start)
    history = []
    for number in range(data.STEPS):
        image, target = data.batch(number)
        state, metrics = step(state, teacher_variables, {"image": image, "target": target})
        parts = ("loss", "label_loss", "distillation_loss")
        history.append([float(metrics.get(part, 0.0)) for part in parts])
    return np.array(history), trees.named_leaves(state.params)


@pytest.mark.parametrize("variant", data.VARIANTS)
def test_losses_and_final_parameters_equal_torch(stored, variant):
    history, final = train(stored, variant)
    np.testing.assert_allclose(history, stored[f"{variant}/losses"], rtol=TOLERANCE)
    reference = final_of(stored, variant)
    start = data.weights({name: value.shape for name, value in reference.items()}, seed=1)
    assert len(final) == len(reference)
    for name, value in reference.items():
        ours = learned(final[our_path(name)], name)
        value, first = (learned(our_layout(x, name), name) for x in (value, start[name]))
        error = np.linalg.norm(ours - value)
        # Relative to how far training moved the tensor, which is a few per cent of it.
        assert error <= TOLERANCE * np.linalg.norm(value - first), name


def test_a_forgotten_weight_decay_would_be_seen(stored):
    """The tolerance is finer than the decay of the distillation token over the run."""
    rates = sum(data.rate(step) for step in range(data.STEPS))
    name = "dist_token"
    first = data.weights({k: v.shape for k, v in final_of(stored, "hard").items()}, seed=1)[name]
    moved = np.linalg.norm(final_of(stored, "hard")[name] - first)
    assert rates * data.WEIGHT_DECAY * np.linalg.norm(first) > 10 * TOLERANCE * moved
