"""Known traps of DeiT's recipe, found in a resolved config before the run is paid for."""

from collections.abc import Callable, Iterator

from deit_jax.recipe.recipe import Recipe
from deit_jax.teacher import manifest

# Images that shared a mix in the published runs, which drew one lambda for each GPU's batch.
PUBLISHED_MIX_GROUP = {"deit_tiny": 256, "deit_small": 256, "deit_base": 64}
# That of the published command with a teacher, for any size; `configs/deit_distilled.py`.
DISTILLED_MIX_GROUP = 64
PUBLISHED_BATCH = 1024
# Base rates for 512 images above this are what 5e-4 becomes by scaling to 1,024.
_SCALED_ADAMW_LR = 1e-3


def recipe_warnings(recipe: Recipe) -> list[str]:
    """What is legal in this recipe but seldom meant, a text each, most harmful first."""
    return [text for check in CHECKS for text in check(recipe)]


def _labels(recipe: Recipe) -> Iterator[str]:
    config = recipe.config
    if config.loss.base == "bce" and config.augment.smoothing > 0:
        yield (
            f"loss.base='bce' with augment.smoothing={config.augment.smoothing:g}: every class of "
            "a smoothed target is above 0 and so a positive; set augment.smoothing=0"
        )


def _other_labels(recipe: Recipe) -> Iterator[str]:
    """What a start would refuse, as far as it shows without the data."""
    if recipe.teacher is None or recipe.teacher.stored is None:
        return
    sizes = {"mix_group": recipe.mix_group, "image_size": recipe.image_size}
    ours = manifest.options(recipe.config, **sizes)
    theirs = {
        key: value
        for key, value in recipe.teacher.stored.inputs.items()
        if key in ours or key.startswith(("augment.", "input."))
    }
    if differ := manifest.differences(theirs, ours):
        yield (
            f"the labels in {recipe.config.teacher.labels} are of other images than this run's, "
            f"which will be refused: {differ}"
        )


def _stored_labels(recipe: Recipe) -> Iterator[str]:
    if recipe.teacher is None or recipe.choice_only:
        return
    stored, tau = recipe.teacher.stored, recipe.config.loss.get("tau", 1.0)
    k = recipe.config.teacher.get("label_k") if stored is None else getattr(stored.kind, "k", None)
    if k and k < recipe.num_classes and tau != 1:
        yield (
            f"labels of the {k:,} largest of {recipe.num_classes:,} logits with loss.tau={tau:g}: "
            "the probability of the other classes is the teacher's at loss.tau=1 alone; store all "
            f"logits (teacher.label_k={recipe.num_classes}), see docs/stored_labels.md"
        )


def _learning_rate(recipe: Recipe) -> Iterator[str]:
    yield from recipe.schedule.warnings
    options, name = recipe.config.schedule, recipe.config.optim.name
    scale = options.scale_by_batch
    if scale is None or scale == recipe.durations.batch_size:
        return
    peak = recipe.schedule.peak
    scaled = f"schedule.base_lr={options.base_lr:g} is scaled by the batch to a peak of {peak:g}"
    remedy = "if it is scaled already, set schedule.scale_by_batch=None"
    if name == "lamb" and peak > options.base_lr:
        yield f"{scaled}; the published rates for LAMB are not scaled: {remedy}"
    elif name == "adamw" and options.base_lr >= _SCALED_ADAMW_LR and peak > options.base_lr:
        yield f"{scaled}, twice the published 5e-4 for 512 images or more: {remedy}"


def _batch(recipe: Recipe) -> Iterator[str]:
    config, batch = recipe.config, recipe.durations.batch_size
    if batch % 2:
        yield (
            f"train.batch_size={batch} is odd: the image in the middle of a reversed batch would "
            "be mixed with itself; use an even batch"
        )
    if recipe.model.has_batch_stats and config.step.accum_steps > 1:
        yield (
            f"step.accum_steps={config.step.accum_steps} with a BatchNorm model: statistics are "
            "those of each micro-batch, so the result differs from that of the whole batch"
        )
    group = recipe.mix_group
    family = "_".join(config.model.name.split("_")[:2])
    published = PUBLISHED_MIX_GROUP.get(family)
    if published and recipe.teacher:
        published = DISTILLED_MIX_GROUP
    comparable = published and batch == PUBLISHED_BATCH and not config.init
    if group and batch < group * config.input.repeats:
        yield (
            f"mix groups of {group} images leave {batch // group} for {config.input.repeats} "
            "repeats: copies of an image share a group and may be mixed with each other; "
            "augment.mix_group=None keeps them apart"
        )
    if group and comparable and group != published:
        yield (
            f"mixing draws once for {group} images, the published run of this model once for "
            f"{published} (its batch on one GPU); augment.mix_group_limit={published} matches it"
        )


def _ema(recipe: Recipe) -> Iterator[str]:
    decay, steps = recipe.config.step.ema_decay, recipe.durations.total_steps
    left = decay**steps if decay else 0.0
    if left > 0.01:
        most = f"at most {1 - 5 / steps:.6g}, or 0 for none" if steps > 5 else "0, for none"
        yield (
            f"step.ema_decay={decay:g} averages over {1 / (1 - decay):,.0f} steps and the run has "
            f"{steps:,}: {100 * left:.0f} % of the average would still be the first weights; use "
            f"{most}"
        )


def _fine_tuning(recipe: Recipe) -> Iterator[str]:
    config = recipe.config
    # DeiT-III, whose position embedding leaves out the class token, fine-tunes with it.
    published = config.init and not config.init_drop_head and config.model.get("class_position")
    drop_path_rate = config.model.get("drop_path_rate", 0.0)
    if published and config.step.train_mode and drop_path_rate > 0:
        yield (
            f"fine-tuning with stochastic depth {drop_path_rate:g}: the published runs of "
            "DeiT had it off; set step.train_mode=False (or model.drop_path_rate=0)"
        )


def _heads(recipe: Recipe) -> Iterator[str]:
    loss = recipe.config.loss
    if "dist" not in recipe.model.heads:
        return
    if loss.distillation == "none" and loss.label_on == "class":
        remedy = "evaluate the class head"
        if not recipe.config.step.train_mode:
            remedy = "the published fine-tuning trained the mean of both: set loss.label_on='mean'"
        yield f"a distilled model without teacher: the distillation head is not trained; {remedy}"
    if loss.distillation != "none" and loss.distill_on == "class":
        yield (
            "loss.distill_on='class' with a distilled model: both losses act on the class token "
            "and the distillation head is not trained; use the plain model, as Table 3 does"
        )


def _evaluation(recipe: Recipe) -> Iterator[str]:
    config, model = recipe.config, recipe.model
    size = max(model.image_size)
    if config.input.canvas < size:
        yield (
            f"input.canvas={config.input.canvas} is smaller than the model's {size} pixels: "
            "larger images, if there are any, are shrunk and then enlarged"
        )
    if not config.model.name.startswith("deit"):
        return
    published = 1.0 if config.model.name.startswith("deit3") else 0.875
    if recipe.num_classes == 1000 and config.eval.crop_ratio != published:
        yield (
            f"eval.crop_ratio={config.eval.crop_ratio:g}: published accuracies of this model are "
            f"at {published:g}"
        )


CHECKS: tuple[Callable[[Recipe], Iterator[str]], ...] = (
    _labels,
    _other_labels,
    _stored_labels,
    _learning_rate,
    _batch,
    _fine_tuning,
    _heads,
    _ema,
    _evaluation,
)
