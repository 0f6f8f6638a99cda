"""Data sets prepared by TensorFlow Datasets, found by name and opened read-only."""

import difflib
import json
import os
import re
from typing import Any

import numpy as np

from deit_jax import storage
from deit_jax.data import example, readers
from deit_jax.data._tensorflow import require_tensorflow, tensorflow_datasets
from deit_jax.data.source import CorruptImage, Data, Record, Source, check_window
from deit_jax.errors import ConfigError, close_matches, unknown


class TfdsSource(Source):
    """Records of one split (slices and sums included) of a prepared tfds data set.

    Args:
        shards: tfds's (filename, skip, take, examples_in_shard) of each file.
        file_format: an entry of `FILE_FORMATS`.
        num_classes: a record whose label is outside 0..num_classes-1 counts as corrupt.
        keys: features of a record, image and label.
        window_shards, exif_orientation: see `Source`.
    """

    def __init__(
        self,
        shards: list,
        file_format: str,
        num_classes: int,
        keys: tuple[str, str],
        window_shards: int | None,
        exif_orientation: bool = False,
    ):
        self.exif_orientation = exif_orientation
        paths = [os.fspath(shard.filename) for shard in shards]
        self.window_shards = window_shards
        self._reader = readers.open_files(file_format, paths, window_shards)
        self._num_classes = num_classes
        self._keys = keys
        self._files = [os.path.basename(path) for path in paths]
        self._skip = np.array([shard.skip for shard in shards], np.int64)
        self.shard_lengths = tuple(shard.take for shard in shards)
        self._ends = np.cumsum(self.shard_lengths)
        for path, shard, stored in zip(paths, shards, self._reader.lengths or (), strict=False):
            if stored != shard.examples_in_shard:
                raise ConfigError(
                    f"{path} has {stored} records, but its dataset_info.json says "
                    f"{shard.examples_in_shard}; prepare the data set again"
                )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _locate(self, index: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[shard]) - self.shard_lengths[shard]
        return shard, int(index) - start + int(self._skip[shard])

    def get(self, indices: np.ndarray) -> tuple[list[Record], np.ndarray]:
        images: list[Record] = []
        labels = np.zeros(len(indices), np.int64)
        for i, index in enumerate(indices):
            try:
                payload = self._reader.read(*self._locate(index))
                image, label = example.image_and_label(payload, *self._keys)
                if not 0 <= label < self._num_classes:
                    raise ValueError(f"label {label} is outside the {self._num_classes} classes")
                labels[i] = label
            except ValueError as error:
                image = CorruptImage(str(error))
            images.append(image)
        return images, labels

    def integers(self, index: int, key: str) -> np.ndarray:
        """All values of the integer feature `key` of a record, int64 [k]; none if damaged."""
        try:
            return example.integers(self._reader.read(*self._locate(index)), key)
        except CorruptImage:
            return np.zeros(0, np.int64)

    def hint(self, indices: np.ndarray) -> None:
        self._reader.hint(np.unique(np.searchsorted(self._ends, indices, side="right")).tolist())

    def record_name(self, index: int) -> str:
        shard, record = self._locate(index)
        return f"{self._files[shard]} record {record}"


def open_tfds(
    *,
    name: str | None = None,
    data_dir: str | None = None,
    train_split: str | None = None,
    eval_split: str | None = None,
    image_key: str = "image",
    label_key: str = "label",
    window_shards: int | None = None,
    exif_orientation: bool = False,
) -> Data:
    """A data set prepared by TensorFlow Datasets.

    Args:
        name: 'imagenet2012', 'cifar10:3.0.2', 'set/config'.
        data_dir: where tfds has prepared it; None: tfds's own default, $TFDS_DATA_DIR or
            ~/tensorflow_datasets.
        train_split, eval_split: split names with tfds's slices ('train[:90%]',
            'train+validation'); None: 'train', and the first of validation, val, test
            that exists.
        image_key, label_key: features of a record.
        window_shards: read that many whole files at a time and shuffle inside them, for
            object stores, where positional reads are slow; None: positional reads, full
            shuffle.
        exif_orientation: images are turned as their EXIF orientation says; the published
            recipes do not.

    Raises:
        ConfigError: an unknown name, split or feature, damaged metadata, files that are
            missing or of a format that is not in `FILE_FORMATS`.
    """
    check_window(window_shards)
    require_tensorflow("tensorflow_datasets")
    if not name:
        raise ConfigError("source 'tfds' needs the name of a data set, such as 'imagenet2012'")
    folder = find_prepared(name, data_dir)
    prepare = prepare_command(name, data_dir)
    builder = _open_builder(folder, prepare)
    label = _label_feature(builder, image_key, label_key)
    _check_names(folder, label_key, label.num_classes, prepare)
    splits = _resolve_splits(builder, train_split, eval_split)
    train, evaluation = (
        TfdsSource(
            _shards(builder, split, prepare),
            builder.info.file_format.value,
            label.num_classes,
            (image_key, label_key),
            window_shards,
            exif_orientation,
        )
        for split in splits
    )
    return Data(
        train=train,
        eval=evaluation,
        num_classes=label.num_classes,
        class_names=tuple(label.names),
        description=f"{builder.info.full_name}: {splits[0]} {len(train)}, "
        f"{splits[1]} {len(evaluation)} images, {label.num_classes} classes",
    )


def _damaged(path: Any, error: object, prepare: str) -> ConfigError:
    reason = str(error).partition("\n")[0]
    return ConfigError(
        f"{path} is missing or damaged ({reason}); prepare the data set again: {prepare}"
    )


def _open_builder(folder: str, prepare: str) -> Any:
    """tfds's builder of a prepared set, whose metadata are checked first."""
    tfds = tensorflow_datasets()

    for name in ("dataset_info.json", "features.json"):
        path = storage.path(folder) / name
        try:
            if not json.loads(path.read_bytes()):
                raise ValueError("it is empty")
        except (OSError, ValueError) as error:
            raise _damaged(path, error, prepare) from error
    try:
        return tfds.builder_from_directory(folder)
    except Exception as error:  # noqa: BLE001 - tfds raises anything for what it cannot read
        raise _damaged(f"the metadata in {folder}", error, prepare) from error


def _check_names(folder: str, label_key: str, num_classes: int, prepare: str) -> None:
    """Raise ConfigError unless the file of the class names has K different ones."""
    path = storage.path(folder) / f"{label_key}.labels.txt"
    if not path.exists():
        return
    names = path.read_bytes().decode(errors="replace").split("\n")
    names = [name.strip() for name in names if name.strip()]
    if len(set(names)) != len(names) or len(names) != num_classes:
        reason = f"{len(set(names))} different names for {num_classes} classes"
        raise _damaged(path, reason, prepare)


def _shards(builder, split: str, prepare: str) -> list:
    """tfds's (filename, skip, take, examples_in_shard) of each file of a split; all exist."""
    shards = builder.info.splits[split].file_instructions
    paths = [os.fspath(shard.filename) for shard in shards]
    # One listing: asking a bucket for each of a thousand files takes minutes.
    folder = storage.path(os.fspath(builder.data_dir))
    present = {path.name for path in folder.iterdir()}
    missing = [path for path in paths if os.path.basename(path) not in present]
    if missing:
        raise ConfigError(
            f"{len(missing)} of the {len(paths)} files of {builder.info.full_name} {split} are "
            f"missing, the first is {missing[0]}; prepare the data set again: {prepare}"
        )
    return shards


def prepare_command(name: str, data_dir: str | None) -> str:
    """The command that prepares a missing set; without data_dir in tfds's default folder."""
    command = f"tfds build {name}" + (f" --data_dir={data_dir}" if data_dir else "")
    if re.split("[/:]", name)[0] == "imagenet2012":
        command += (
            " --manual_dir=DIR (DIR with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, "
            "which image-net.org gives after registration; tfds cannot download them)"
        )
    return command


def find_prepared(name: str, data_dir: str | None) -> str:
    """Folder of the newest prepared version of 'set', 'set/config' or 'set:1.2.3'.

    Raises:
        ConfigError: no such data_dir, set, config or version; names what there is and the
            command that prepares the set.
    """
    tfds = tensorflow_datasets()

    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    root = storage.path(data_dir or default).expanduser()
    if not root.is_dir():
        given = "data_dir" if data_dir else "data_dir is not given, and tfds's default"
        raise ConfigError(
            f"{given} {root} does not exist; give the directory of the prepared "
            f"data sets, or prepare one: {prepare_command(name, data_dir)}"
        )
    base, _, version = name.partition(":")
    folder = root / base
    if not folder.is_dir():
        present = storage.folders_in(root)
        raise ConfigError(
            f"no prepared data set {base!r} in data_dir {root}; "
            f"it has: {close_matches(base, present) or 'nothing'}. {_how_to_get(name, data_dir)}"
        )
    folders = storage.folders_in(folder)
    versions = [name for name in folders if tfds.core.Version.is_valid(name)]
    versions.sort(key=tfds.core.Version)
    prepared = [v for v in versions if (folder / v / "dataset_info.json").is_file()]
    if version and version not in prepared:
        raise ConfigError(f"no version {version} in {folder}; prepared: {', '.join(prepared)}")
    if not prepared:
        configs = [name for name in folders if name not in versions]
        hint = f"; it has configs, name one: {base}/{configs[0]}" if configs else ""
        command = prepare_command(name, data_dir)
        raise ConfigError(f"{folder} has no prepared version{hint}; to prepare it: {command}")
    return str(folder / (version or prepared[-1]))


def _how_to_get(name: str, data_dir: str | None) -> str:
    """The command that prepares a set, or near names when tfds has no set of that name."""
    tfds = tensorflow_datasets()

    base = re.split("[/:]", name)[0]
    known = tfds.list_builders(with_community_datasets=False)
    if base in known:
        return f"To prepare it: {prepare_command(name, data_dir)}"
    near = difflib.get_close_matches(base, known, n=5)
    return f"tfds has no set of that name{'; nearest: ' + ', '.join(near) if near else ''}"


def _label_feature(builder, image_key: str, label_key: str) -> Any:
    """The ClassLabel feature; errors that name the features there are."""
    tfds = tensorflow_datasets()

    features = builder.info.features
    for key in (image_key, label_key):
        if key not in features:
            raise unknown(f"feature of {builder.info.full_name}", key, features)
    if not isinstance(features[image_key], tfds.features.Image):
        raise ConfigError(f"feature {image_key!r} is not an image but {features[image_key]}")
    label = features[label_key]
    if not isinstance(label, tfds.features.ClassLabel) or not label.num_classes:
        raise ConfigError(f"feature {label_key!r} is not a class label but {label}")
    return label


def _resolve_splits(builder, train_split: str | None, eval_split: str | None):
    """Both split names, checked: each must exist and have records."""
    known = list(builder.info.splits)
    if eval_split is None:
        eval_split = next((s for s in ("validation", "val", "test") if s in known), None)
        if eval_split is None:
            raise ConfigError(
                f"{builder.info.full_name} has no validation, val or test split; "
                f"give eval_split, such as 'train[90%:]'; splits: {', '.join(known)}"
            )
    splits = (train_split or "train", eval_split)
    for split in splits:
        for part in split.split("+"):
            base = part.split("[")[0].strip()
            if base not in known:
                raise unknown(f"split of {builder.info.full_name}", base, known)
        try:
            count = builder.info.splits[split].num_examples
        except ValueError as error:
            raise ConfigError(f"split {split!r} cannot be read: {error}") from error
        if not count:
            raise ConfigError(f"split {split!r} of {builder.info.full_name} is empty")
    return splits
