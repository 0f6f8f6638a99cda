"""Prepared TensorFlow data sets, found read-only by name; TFRecord and ArrayRecord files."""

import difflib
import os
import re

import numpy as np

from deit_jax.data import readers, tfrecord
from deit_jax.data.source import Data, check_labels
from deit_jax.errors import ConfigError, close_matches, unknown

_IMAGENET_ARCHIVES = "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar"


class TfdsSource:
    """Records of one split (slices and sums included) of a prepared tfds data set.

    Args:
        instructions: tfds's list of (filename, skip, take, examples_in_shard) for the split.
        reader: `read(shard, record) -> payload` and `hint(shards)`.
        num_classes: labels outside 0..num_classes-1 are an error at reading.
    """

    def __init__(self, *, instructions, reader, num_classes: int, image_key: str, label_key: str):
        self._reader = reader
        self._num_classes = num_classes
        self._keys = (image_key, label_key)
        self._files = [os.path.basename(one.filename) for one in instructions]
        self._skip = np.array([one.skip for one in instructions], np.int64)
        self.shard_lengths = tuple(one.take for one in instructions)
        self._ends = np.cumsum(self.shard_lengths)
        stored = getattr(reader, "lengths", None)
        for i, one in enumerate(instructions):
            if stored is not None and stored[i] != one.examples_in_shard:
                raise ConfigError(
                    f"{one.filename} holds {stored[i]} records, its dataset_info.json says "
                    f"{one.examples_in_shard}; prepare the data set again"
                )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _locate(self, index: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[shard]) - self.shard_lengths[shard]
        return shard, int(index) - start + int(self._skip[shard])

    def get(self, indices: np.ndarray) -> tuple[list[bytes], np.ndarray]:
        images, labels = [], np.zeros(len(indices), np.int64)
        for i, index in enumerate(indices):
            try:
                image, labels[i] = tfrecord.parse_example(
                    self._reader.read(*self._locate(index)), *self._keys
                )
            except ValueError:
                # Damaged around the image: no image, so counted as corrupt when decoded.
                image = b""
            images.append(image)
            check_labels(labels[i : i + 1], self._num_classes, self.record_name(index))
        return images, labels

    def integers(self, index: int, key: str) -> np.ndarray:
        """All values of the integer feature `key` of a record, int64 [k]."""
        return tfrecord.parse_integers(self._reader.read(*self._locate(index)), key)

    def hint(self, indices: np.ndarray) -> None:
        """These records will be asked for soon: start reading their files if that takes long."""
        self._reader.hint(np.unique(np.searchsorted(self._ends, indices, side="right")).tolist())

    def record_name(self, index: int) -> str:
        shard, record = self._locate(index)
        return f"{self._files[shard]} record {record}"


def open_tfds(
    *,
    name: str | None,
    data_dir: str | None,
    train_split: str | None,
    eval_split: str | None,
    image_key: str,
    label_key: str,
    window_shards: int | None,
) -> Data:
    """Open a prepared set; see `sources.open_data`. Downloads nothing."""
    if not name:
        raise ConfigError("source 'tfds' needs the name of a data set, such as 'imagenet2012'")
    folder = find_prepared(name, data_dir)
    import tensorflow_datasets as tfds
    from etils import epath

    builder = tfds.builder_from_directory(folder)
    num_classes, names = _check_features(builder, image_key, label_key)
    splits = _resolve_splits(builder, train_split, eval_split)
    opened = []
    for split in splits:
        instructions = builder.info.splits[split].file_instructions
        paths = [os.fspath(one.filename) for one in instructions]
        missing = [path for path in paths if not epath.Path(path).exists()]
        if missing:
            raise ConfigError(
                f"{len(missing)} of the {len(paths)} files of {name} {split} are missing, "
                f"the first is {missing[0]}; prepare it again: {prepare_command(name, data_dir)}"
            )
        reader = _reader(builder.info.file_format.value, paths, window_shards)
        source = TfdsSource(
            instructions=instructions,
            reader=reader,
            num_classes=num_classes,
            image_key=image_key,
            label_key=label_key,
        )
        opened.append(source)
    train, evaluation = opened
    return Data(
        train=train,
        eval=evaluation,
        num_classes=num_classes,
        class_names=names,
        description=f"{builder.info.full_name}: {splits[0]} {len(train)}, "
        f"{splits[1]} {len(evaluation)} images, {num_classes} classes",
    )


def _reader(file_format: str, paths: list[str], window_shards: int | None):
    if window_shards is not None:
        # Two windows: the one in use and the one that is read ahead.
        return readers.WholeFiles(paths, file_format, keep=2 * window_shards)
    if "://" in paths[0]:
        raise ConfigError(
            f"{paths[0]} lies in an object store, where every record would cost a round trip; "
            "set window_shards (8 files read whole at a time, say), or copy or mount the data"
        )
    if file_format == "tfrecord":
        return tfrecord.RecordFiles(paths)
    if file_format == "array_record":
        return readers.ArrayRecordFiles(paths)
    raise ConfigError(
        f"files of format {file_format!r} are not supported; prepare the set as tfrecord: "
        "tfds build NAME --file_format=tfrecord"
    )


def default_data_dir() -> str:
    """Where tfds keeps its data: $TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    return os.environ.get("TFDS_DATA_DIR") or os.path.join(
        os.path.expanduser("~"), "tensorflow_datasets"
    )


def prepare_command(name: str, data_dir: str | None) -> str:
    """The command with which a user prepares a missing set."""
    command = f"tfds build {name} --data_dir={data_dir or default_data_dir()}"
    if name.split("/")[0].split(":")[0] == "imagenet2012":
        command += (
            f" --manual_dir=DIR (DIR holding {_IMAGENET_ARCHIVES}, "
            "which image-net.org gives after registration; tfds cannot download them)"
        )
    return command


def find_prepared(name: str, data_dir: str | None) -> str:
    """Folder of the newest prepared version of 'set', 'set/config' or 'set:1.2.3'.

    Raises:
        ConfigError: no such data_dir, set, config or version; names what there is and the
            command that prepares the set.
    """
    from etils import epath

    root = epath.Path(data_dir or default_data_dir()).expanduser()
    if not root.is_dir():
        given = "data_dir" if data_dir else "data_dir is not given, and tfds's default"
        raise ConfigError(
            f"{given} {root} does not exist; give the directory that holds the prepared "
            f"data sets, or prepare one: {prepare_command(name, data_dir)}"
        )
    base, _, version = name.partition(":")
    folder = root / base
    if not folder.is_dir():
        present = sorted(p.name for p in root.iterdir() if p.is_dir())
        raise ConfigError(
            f"no prepared data set {base!r} in data_dir {root}; "
            f"there: {close_matches(base, present) or 'nothing'}. {_how_to_get(name, data_dir)}"
        )
    versions = sorted(
        (p.name for p in folder.iterdir() if re.fullmatch(r"\d+\.\d+\.\d+", p.name)),
        key=lambda v: tuple(map(int, v.split("."))),
    )
    prepared = [v for v in versions if (folder / v / "dataset_info.json").is_file()]
    if version and version not in prepared:
        raise ConfigError(f"no version {version} in {folder}; prepared: {', '.join(prepared)}")
    if not prepared:
        configs = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name not in versions)
        hint = f"; it has configs, name one: {base}/{configs[0]}" if configs else ""
        raise ConfigError(
            f"{folder} holds no prepared version{hint}; "
            f"to prepare it: {prepare_command(name, data_dir)}"
        )
    return os.fspath(folder / (version or prepared[-1]))


def _how_to_get(name: str, data_dir: str | None) -> str:
    """The command that prepares a set, or the near names when tfds knows no such set."""
    import tensorflow_datasets as tfds

    base = name.split("/")[0].split(":")[0]
    known = tfds.list_builders(with_community_datasets=False)
    if base in known:
        return f"To prepare it: {prepare_command(name, data_dir)}"
    near = difflib.get_close_matches(base, known, n=5, cutoff=0.6)
    return f"tfds has no set of that name{'; near: ' + ', '.join(near) if near else ''}"


def _check_features(builder, image_key: str, label_key: str):
    """Number of classes and their names; errors that name the features there are."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    for key in (image_key, label_key):
        if key not in features:
            raise unknown(f"feature of {builder.info.full_name}", key, features)
    if not isinstance(features[image_key], tfds.features.Image):
        raise ConfigError(f"feature {image_key!r} is no image but {features[image_key]}")
    label = features[label_key]
    if not isinstance(label, tfds.features.ClassLabel):
        raise ConfigError(f"feature {label_key!r} is no class label but {label}")
    try:
        names = tuple(label.names)
    except (ValueError, AttributeError, TypeError):
        names = None
    return label.num_classes, names


def _resolve_splits(builder, train_split: str | None, eval_split: str | None):
    """Both split names, checked: each must exist and hold records."""
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
