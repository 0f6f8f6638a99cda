"""The frozen teacher of a distilled run: live, recorded, or replaced by stored labels.

    options.py   the `teacher` section of a config
    model.py     which model it is, without its weights where its file says
    live.py      the teacher with its weights
    kinds.py     what is kept of its logits: the first choice, or the largest logits
    manifest.py  what stored labels depend on
    files.py     their files: one per epoch, a checksum per step
    recorder.py  writes them while steps run
    stored.py    opens and reads them

docs/stored_labels.md describes the whole. To add a kind of label: a class and a line in
`kinds.KINDS`.
"""

from deit_jax.teacher.kinds import MOST_CLASSES, Kind, make_kind
from deit_jax.teacher.live import Teacher
from deit_jax.teacher.options import make_teacher
from deit_jax.teacher.recorder import Recorder
from deit_jax.teacher.stored import PREFIX, LabeledBatches, StoredLabels, open_labels

__all__ = [
    "Kind",
    "LabeledBatches",
    "MOST_CLASSES",
    "PREFIX",
    "Recorder",
    "StoredLabels",
    "Teacher",
]
__all__ += ["make_kind", "make_teacher", "open_labels"]
