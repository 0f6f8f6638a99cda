# ---
# jupyter:
#   accelerator: GPU
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Fine-tune a DeiT on your own photos
#
# DeiT is a vision transformer with two heads: one on its *class token*, one on a *distillation token* that
# learns from a convnet teacher. This notebook fine-tunes one on your photos, shows what it learned and
# where it errs, distils it from a teacher that is trained on the same photos, and ends with a file that
# runs without this library.
#
# It runs on Colab's T4 GPU, v5e-1 TPU and CPU (*Runtime > Change runtime type*). Run the cells from top
# to bottom: they begin with a sample set of handwritten digits and a very small model, so that you see
# everything before your photos are ready. Then set `PHOTOS_FROM` and run them again.
#
# ## Install
#
# Nothing that is installed already is changed: `pip` gets all installed versions as constraints.

# %%
import importlib.util
import os
import subprocess
import sys

REPOSITORY = "git+https://github.com/OWNER/deit_jax"  # where you found this notebook


def pip(*arguments):
    return subprocess.check_output([sys.executable, "-m", "pip", *arguments], text=True)


if importlib.util.find_spec("deit_jax") is None:
    before = pip("list", "--format=freeze")
    with open("installed.txt", "w") as file:
        file.write(before)
    pip("install", "-q", "-c", "installed.txt", f"deit_jax[data,quickstart] @ {REPOSITORY}")
    changed = set(before.split()) - set(pip("list", "--format=freeze").split())
    assert not changed, f"pip replaced {changed}"

# %% [markdown]
# Is the accelerator there, and does jax use it? If not, this cell says what to choose.

# %%
ACCELERATOR = os.environ.get("DEIT_JAX_ACCELERATOR", "gpu")  # "gpu" (T4), "tpu" (v5e-1) or "cpu"

from deit_jax import cli, data
from deit_jax.models import accelerator

print("computing on", accelerator.describe(accelerator.require(ACCELERATOR)))

# %% [markdown]
# ## Your photos
#
# One folder per class, `photos/<class>/*.jpg`, or a `.zip` of that; no split is needed, a fifth of each
# class is kept for validation. `PHOTOS_FROM` is one of
#
# - `"sample"`: 1,797 scans of handwritten digits, which scikit-learn brings along,
# - `"upload"`: asks for a `.zip`,
# - `"https://.../photos.zip"`: an address,
# - `"/content/drive/MyDrive/photos.zip"`: Google Drive, copied to this machine first,
# - a path on this machine.
#
# `RUNS` is where checkpoints go. Colab's machine is lost when it disconnects; Google Drive is not:
# `"/content/drive/MyDrive/runs"`.

# %%
PHOTOS_FROM = "sample"
RUNS = "runs"
NEW_PHOTO = "photos/new/7.png"  # one that is not among them, to try the model on

if RUNS.startswith("/content/drive"):
    from google.colab import drive

    drive.mount("/content/drive")
PHOTOS = data.obtain_photos(PHOTOS_FROM, "photos")

# %% [markdown]
# The cells below are commands of `deit-jax`, with the same words as in a terminal. They run in this
# process, since an accelerator serves one process only.

# %%
from IPython.display import Image


def deit_jax(*arguments):
    if cli.main([str(argument) for argument in arguments]) > 1:
        raise RuntimeError("the line above says why")


# %% [markdown]
# What is in the photos? The figure has some of each class and how many there are; below it, in red, is
# what cannot be read. (The sample has two such files, to show what is said of them.)

# %%
deit_jax("data", "--source=folder", f"--path={PHOTOS}", "--decode", "--png=photos.png")
Image("photos.png")

# %% [markdown]
# ## The model and what it will cost
#
# For your photos: DeiT-S with the weights that its authors published (ImageNet-1k, 81.2 % there) and new
# heads for your classes; both heads learn from the labels. For the sample: the same kind of model, small
# enough to be trained from nothing on two CPU cores. Photos that cannot be read are replaced by others,
# up to one in twenty.

# %%
DATA = ["--config.data.source=folder", f"--config.data.path={PHOTOS}"]
DATA += ["--config.input.max_corrupt_share=0.05", "--config.log.trackers=notebook"]
if PHOTOS_FROM == "sample":
    SMALL = ["--config.input.canvas=32", "--config.eval.canvas=32", "--config.train.batch_size=64"]
    SMALL += ["--config.train.log_every_steps=11", "--config.train.eval_every_epochs=4"]
    SMALL += ["--config.step.ema_decay=0"]
    DEIT = [*SMALL, "--config.model.depth=4", "--config.train.total_epochs=16"]
    MODEL = ["--config=quickstart:plain", *DEIT, "--config.model.distilled=true"]
    TEACHER = ["--config=quickstart:teacher", *SMALL, "--config.train.total_epochs=8"]
    DISTILLED = ["--config=quickstart:student", *DEIT]
else:
    NAME = "deit_small_distilled_patch16_224"
    START = ["--config.init_drop_head=true", "--config.train.log_every_steps=10"]
    MODEL = ["--config=finetune:s", *START, f"--config.model.name={NAME}", f"--config.init={NAME}"]
    TEACHER = ["--config=finetune:s", *START, "--config.model.name=regnety_160"]
    TEACHER += ["--config.init=regnety_160", "--config.train.total_epochs=10"]
    DISTILLED = [*MODEL, "--config.loss.distillation=hard"]
LABELS_ALONE = "--config.loss.label_on=mean"

# %% [markdown]
# `explain` says what a run will do before it is paid for: its steps, rates, augmentation and loss, its
# cost in operations and memory, and whether that fits. On a CPU it is asked about Colab's T4; try
# `--device=v5e`.

# %%
OTHER = ["--device=t4"] if ACCELERATOR == "cpu" else []
deit_jax("explain", *MODEL, LABELS_ALONE, *DATA, *OTHER)

# %% [markdown]
# What the model will see: each row is a photo, then draws of the augmentation.

# %%
SHEET = ["--images=4", "--draws=7", "--output=augmentations.png"]
deit_jax("augmentations", *MODEL, LABELS_ALONE, *DATA, *SHEET)
Image("augmentations.png")

# %% [markdown]
# ## Train
#
# One line shows the progress; the curves grow while it trains. Stop it whenever you like (the square on
# the cell): it saves first, and running the cell again goes on from there. That is also all there is to
# do after a disconnect, if `RUNS` is on Google Drive.

# %%
deit_jax("train", *MODEL, LABELS_ALONE, *DATA, f"--workdir={RUNS}/first")

# %% [markdown]
# ## How good is it?
#
# The accuracy of both heads and of the two together, on the photos that were kept for validation; and
# goodput, the share of the time that went into training (the rest is starting, compiling, evaluating).

# %%
deit_jax("compare", f"first={RUNS}/first", "--png=curves.png")
Image("curves.png")

# %% [markdown]
# Which classes are taken for which?

# %%
Image(f"{RUNS}/first/confusion.png")

# %% [markdown]
# The pictures that are most wrong are worth a look: are they hard, or is their label wrong?

# %%
Image(f"{RUNS}/first/worst.png")

# %% [markdown]
# ## A new photo
#
# What is it, by each head?

# %%
deit_jax("predict", f"--checkpoint={RUNS}/first", NEW_PHOTO, "--top=3")
Image(NEW_PHOTO, width=200)

# %% [markdown]
# Where did the class token and the distillation token look? Each map is the attention of a token to the
# patches of the photo, one row per block.

# %%
deit_jax("attention", f"--checkpoint={RUNS}/first", NEW_PHOTO, "--output=attention/first")
Image(f"attention/first/{os.path.splitext(os.path.basename(NEW_PHOTO))[0]}.png")

# %% [markdown]
# ## Distillation
#
# First a teacher, a RegNetY (a convnet), on the same photos.

# %%
deit_jax("train", *TEACHER, *DATA, f"--workdir={RUNS}/teacher")

# %% [markdown]
# Then the same DeiT again, whose distillation token now learns the teacher's answers, while the class
# token learns the labels.

# %%
deit_jax(
    "train",
    *DISTILLED,
    *DATA,
    f"--config.teacher.init={RUNS}/teacher",
    f"--workdir={RUNS}/distilled",
)

# %% [markdown]
# Did it help? On a few hundred photos a difference of a percent or two is chance.

# %%
ALL = [f"{name}={RUNS}/{name}" for name in ("first", "teacher", "distilled")]
deit_jax("compare", *ALL, "--png=compared.png")
Image("compared.png")

# %% [markdown]
# Its distillation token may look elsewhere than the class token does.

# %%
deit_jax("attention", f"--checkpoint={RUNS}/distilled", NEW_PHOTO, "--output=attention/distilled")
Image(f"attention/distilled/{os.path.splitext(os.path.basename(NEW_PHOTO))[0]}.png")

# %% [markdown]
# ## Take it with you
#
# `model.jax` has the weights inside and needs jax alone, on a CPU, a GPU or a TPU; `model.jax.json` says how
# photos are prepared and what the classes are called. (`model.onnx`, with `pip install onnx`, is for
# other runtimes; `deit-jax publish` makes a model folder for timm or transformers.)

# %%
deit_jax("export", "model.jax", f"--checkpoint={RUNS}/distilled")

# %% [markdown]
# Does the file compute the same as the checkpoint?

# %%
import jax.export
import numpy as np

from deit_jax import models, pretrained

loaded = pretrained.load_checkpoint(f"{RUNS}/distilled")
model = loaded.create_model()
images = np.random.default_rng(0).normal(size=(3, *model.image_size, 3)).astype(np.float32)
expected = models.apply(model, loaded.variables, images)
with open("model.jax", "rb") as file:
    found = jax.export.deserialize(bytearray(file.read())).call(images)
np.testing.assert_allclose(found["logits"], expected.logits, atol=1e-4)
np.testing.assert_allclose(found["dist_logits"], expected.dist_logits, atol=1e-4)
print("largest difference of a logit:", np.abs(found["logits"] - expected.logits).max())

# %% [markdown]
# In Colab, this downloads it.

# %%
if "google.colab" in sys.modules:
    from google.colab import files

    files.download("model.jax")
    files.download("model.jax.json")

# %% [markdown]
# ## After a disconnect, and longer
#
# Run the cells above again: with the same `RUNS` every training goes on after its newest checkpoint, and
# one that is finished says so. A finished run can be made longer, too; its learning rate then follows
# the longer schedule.

# %%
LONGER = ["--config.train.total_epochs=18"] if PHOTOS_FROM == "sample" else []
deit_jax("train", *MODEL, LABELS_ALONE, *DATA, *LONGER, f"--workdir={RUNS}/first")
