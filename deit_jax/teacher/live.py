"""The live teacher: any registered model from any readable checkpoint, at its own resolution.

Its variables are never part of the training state or its checkpoints; they are an argument of
the step, so that they are neither constants of the program nor donated.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deit_jax import models, pretrained
from deit_jax.errors import ConfigError
from deit_jax.teacher import manifest
from deit_jax.teacher import model as teacher_model

PyTree = Any

NO_TEACHER = """\
config.teacher.init is not set, and a distilled run needs a trained teacher. Give one of:
  - the published RegNetY-16GF: download
    https://dl.fbaipublicfiles.com/deit/regnety_160-a5fe301d.pth and set
    --config.teacher.init=regnety_160-a5fe301d.pth (no conversion needed)
  - a run of this library: --config.teacher.init=WORKDIR, for example of
    configs/quickstart.py:teacher
  - labels that were stored before: --config.teacher.labels=DIR
To train the same student without a teacher: --config.loss.distillation=none"""


class Teacher(NamedTuple):
    """A frozen classifier, or several whose probabilities are averaged.

    Attributes:
      fn: `(variables, image f32 [B, h, w, 3]) -> logits f32 [B, K]`, for the student's
        normalized image.
      variables: host arrays, to be placed on the mesh by the caller.
      description: one line for the terminal.
      model: what `fn` applies, with its compute dtype and image size.
      facts: JSON values that say how the weights are applied.
    """

    fn: Callable[[PyTree, jax.Array], jax.Array]
    variables: PyTree
    description: str
    model: models.Model | teacher_model.Ensemble
    facts: tuple[Any, ...] = ()

    @property
    def digest(self) -> str:
        """Digest of the weights, and of how they are applied."""
        return manifest.weights_digest(self.variables, facts=self.facts)


def load_teacher(
    num_classes: int,
    image_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    *,
    init: str = "",
    name: str = "",
    num_heads: int | None = None,
    ensemble: tuple[str, ...] = (),
    ema: bool = False,
    which: str = "latest",
    input_size: int | None = None,
    dtype: str = "auto",
    fold_batch_norm: bool = True,
) -> Teacher:
    """Loads a teacher and makes it a function of the student's input.

    Args:
      num_classes: of the student; a teacher with another number is refused.
      image_size, mean, std: side in pixels and statistics of the student's input.
      init: its checkpoint, see `pretrained.load_checkpoint`.
      name: registered model of `init`, when the file does not determine it.
      num_heads: of a transformer whose file does not record them; None for those of its name.
      ensemble: further checkpoints; the answer is the mean of all probabilities.
      ema, which: of a run of ours: its EMA; `latest`, `best` (by its best_metric) or a step.
      input_size: side of the teacher's input in pixels; None for the student's, as in the
        paper.
      dtype: compute type; 'auto' is bfloat16 on accelerators that have it, see `accelerator`.
      fold_batch_norm: fold BatchNorm constants into the convolutions.

    Raises:
      ConfigError: no `init`, an unreadable one, or one of another number of classes.
    """
    first = teacher_model.asked(name, num_heads)
    if not init:
        raise ConfigError(NO_TEACHER)
    side = input_size or image_size
    members: list[Teacher] = []
    for source, asked in [(init, first), *((other, {}) for other in ensemble)]:
        loaded = pretrained.load_checkpoint(source, ema=ema, which=which, **asked)
        model = teacher_model.create_model(loaded, num_classes, side, dtype=dtype)
        variables = pretrained.adapt(loaded, model=model).variables
        if fold_batch_norm:
            model, variables = model.fold_batch_norm(variables)
        convert = _input_conversion(image_size, side, (mean, std), (loaded.mean, loaded.std))
        name_and_file = f"{loaded.model} from {loaded.label}"
        description = teacher_model.describe(model, name_and_file, loaded.assumed)
        facts = (repr(model), tuple(loaded.mean), tuple(loaded.std))
        members.append(Teacher(_apply(model, convert), variables, description, model, facts))
    return members[0] if len(members) == 1 else _mean(members)


def without_weights(model: models.Model | teacher_model.Ensemble, image_size: int) -> Teacher:
    """The teacher with the shapes of its variables in their place: to compile and time steps."""
    if isinstance(model, teacher_model.Ensemble):
        return _mean([without_weights(member, image_size) for member in model.members])
    same = ((0.0,), (1.0,))
    convert = _input_conversion(image_size, model.image_size[0], same, same)
    return Teacher(_apply(model, convert), models.abstract_variables(model), "no weights", model)


def _apply(model: models.Model, convert: Callable) -> Callable[[PyTree, jax.Array], jax.Array]:
    def fn(variables: PyTree, image: jax.Array) -> jax.Array:
        output = models.apply(model, variables, convert(image))
        if output.dist_logits is None:
            return output.logits
        return (output.logits + output.dist_logits) / 2

    return fn


def _mean(members: list[Teacher]) -> Teacher:
    """The teacher whose probabilities are the mean of those of all members."""

    def fn(variables: PyTree, image: jax.Array) -> jax.Array:
        logits = (member.fn(v, image) for member, v in zip(members, variables, strict=True))
        log_p = jnp.stack([jax.nn.log_softmax(x.astype(jnp.float32)) for x in logits])
        return jax.nn.logsumexp(log_p, axis=0) - jnp.log(float(len(members)))

    return Teacher(
        fn,
        tuple(member.variables for member in members),
        teacher_model.describe_mean([member.description for member in members]),
        teacher_model.Ensemble(tuple(member.model for member in members)),
        tuple(fact for member in members for fact in member.facts),
    )


def _input_conversion(from_size: int, to_size: int, student_stats, teacher_stats):
    """From the student's normalized image to the teacher's: statistics, then size."""
    same_stats = np.allclose(student_stats, teacher_stats)
    stats = np.asarray([*student_stats, *teacher_stats], np.float32)
    mean, std, teacher_mean, teacher_std = stats.reshape(4, 1, 1, 1, -1)

    def convert(image: jax.Array) -> jax.Array:
        if not same_stats:
            image = (image * std + mean - teacher_mean) / teacher_std
        if from_size != to_size:
            shape = (image.shape[0], to_size, to_size, image.shape[3])
            image = jax.image.resize(image, shape, "bicubic", antialias=True)
        return jnp.asarray(image)

    return convert
