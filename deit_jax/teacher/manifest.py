"""What stored labels depend on, written beside them as `labels.json` and compared before use."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from deit_jax import augment, builders, data, storage
from deit_jax.data.source import Record
from deit_jax.errors import printable
from deit_jax.teacher import files, kinds
from deit_jax.trees import named_leaves

FILE_NAME = "labels.json"
_FORMAT = 1
# Options of `augment` that change no image: of the targets, and two that together give the mix
# group, which is compared instead. Products of `matmul` are of integers and exact in every way.
_NO_IMAGE = ("smoothing", "matmul", "mix_group", "mix_group_limit")
# Options of `input` that change no canvas.
_NO_PIXEL = ("threads", "prefetch", "max_corrupt_share")
# What the digest of a data set reads at most, evenly spread: images in files, and bytes of images
# in memory. Half a second each.
_SAMPLE, _BYTES = 4096, 1 << 28


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The identity of a set of labels.

    Attributes:
      kind: what is stored for an image.
      inputs: what the teacher's images depend on, by config key: see `inputs`.
      teacher: `digest` of weights and compute type, and what describes it.
    """

    kind: kinds.Kind
    inputs: dict[str, Any]
    teacher: dict[str, Any]

    @functools.cached_property
    def id(self) -> str:
        """Digest of everything that the labels depend on."""
        content = [_FORMAT, kinds.to_json(self.kind), self.inputs, self.teacher["digest"]]
        return hashlib.sha256(_canonical(content)).hexdigest()[:16]

    def files(self, folder: storage.Path) -> files.EpochFiles:
        """The set's files in a folder."""
        batch, steps = self.inputs["train.batch_size"], self.inputs["steps_per_epoch"]
        return files.EpochFiles(folder, self.id, self.kind.row, batch, steps)

    def write(self, folder: storage.Path, made: Mapping[str, Any]) -> None:
        """Writes `labels.json`, with what it was `made` with for the reader."""
        content = {
            "format": _FORMAT,
            "id": self.id,
            "labels": kinds.to_json(self.kind),
            "inputs": self.inputs,
            "teacher": self.teacher,
            "made": dict(made),
        }
        storage.write(folder / FILE_NAME, json.dumps(content, indent=2) + "\n")


def read(folder: storage.Path) -> Manifest:
    """The manifest of the labels in a folder.

    Raises:
      LabelError: there are no labels, or the manifest is damaged or of a newer version.
    """
    path = folder / FILE_NAME
    try:
        content = json.loads(storage.read_range(path, 0, 1 << 24))
        if content["format"] > _FORMAT:
            raise files.LabelError(f"labels: {path} was written by a newer version of deit_jax")
        kind = kinds.from_json(content["labels"])
        found = Manifest(kind, content["inputs"], content["teacher"])
        if content["id"] != found.id:
            raise ValueError("its content does not match its id")
    except FileNotFoundError:
        raise files.LabelError(
            f"labels: {folder} has no {FILE_NAME}; a run with teacher.record=DIR or `deit-jax "
            "labels --output=DIR` writes a set of labels"
        ) from None
    except OSError as error:
        raise files.LabelError(f"labels: {path} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = printable(str(error), limit=200)
        raise files.LabelError(f"labels: {path} is damaged ({reason})") from error
    return found


def describe(folder: storage.Path, manifest: Manifest) -> str:
    """One line on a set of labels."""
    return f"{manifest.kind.description} in {folder}, of {manifest.teacher['description']}"


def inputs(
    config: Any, *, source: data.Source, mix_group: int | None, image_size: int
) -> dict[str, Any]:
    """What the images of a run depend on, JSON values by config key.

    Neither the student nor its loss, optimizer, schedule or length are among them, and no number
    of devices or processes.

    Args:
      config: complete.
      source: of the training images.
      mix_group: rows that share a mix, resolved.
      image_size: side in pixels.
    """
    batch_size, repeats = config.train.batch_size, config.input.repeats
    found = {
        "data.digest": data_digest(source),
        "data.images": len(source),
        "data.window_shards": source.window_shards,
        "data.exif_orientation": getattr(source, "exif_orientation", False),
        "steps_per_epoch": data.steps_per_epoch(len(source), batch_size, repeats),
    }
    return found | options(config, mix_group=mix_group, image_size=image_size)


def options(config: Any, *, mix_group: int | None, image_size: int) -> dict[str, Any]:
    """The part of `inputs` that is known without the data."""
    found = {
        "seed": config.seed,
        "train.batch_size": config.train.batch_size,
        "model.image_size": image_size,
        "augment.mix_group": mix_group,
        "augment.version": augment.VERSION,
        **{f"augment.{k}": config.augment[k] for k in config.augment if k not in _NO_IMAGE},
        **{f"input.{k}": config.input[k] for k in config.input if k not in _NO_PIXEL},
    }
    return json.loads(json.dumps(found))


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """`augment.mixup: 0.8 there, 0 here; ...`; "" if there are none."""
    keys = sorted(theirs.keys() | ours.keys())
    pairs = {key: (theirs.get(key, "absent"), ours.get(key, "absent")) for key in keys}
    return "; ".join(
        f"{key}: {builders.plain(old)} there, {builders.plain(new)} here"
        for key, (old, new) in pairs.items()
        if old != new
    )


def data_digest(source: data.Source) -> str:
    """A digest of the images of a data set and their order.

    All of them are read where they are few or in memory, else a part that is spread evenly over
    the set; of a set that is read file by file, the beginning.
    """
    total, first = len(source), source.get(np.arange(1))[0][0]
    count = _BYTES // max(first.nbytes, 1) if isinstance(first, np.ndarray) else _SAMPLE
    chosen = np.arange(min(count, total)) * total // min(count, total)
    order = [total]
    if source.window_shards:
        order, chosen = [total, *source.shard_lengths], np.arange(min(8, total))

    def part(indices: np.ndarray) -> bytes:
        content = hashlib.sha256()
        for record in source.get(indices)[0]:
            content.update(_bytes(record))
        return content.digest()

    parts = [chosen[start : start + 64] for start in range(0, len(chosen), 64)]
    # Stores answer late; several requests at a time.
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        digest = hashlib.sha256(b"".join([str(order).encode(), *pool.map(part, parts)]))
    return digest.hexdigest()[:16]


def weights_digest(variables: Any, *, facts: Any) -> str:
    """A digest of arrays with their names, and of JSON values that belong to them."""
    digest = hashlib.sha256(_canonical(facts))
    for name, leaf in sorted(named_leaves(variables).items()):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{name} {array.shape} {array.dtype}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:16]


def _bytes(record: Record) -> bytes:
    if isinstance(record, np.ndarray):
        return str(record.shape).encode() + record.tobytes()
    return record if isinstance(record, bytes) else str(record).encode()


def _canonical(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True).encode()
