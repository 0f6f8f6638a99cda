"""Host batches: canvases, decoding once, corrupt records, threads and processes."""

import hashlib
import io
import itertools
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from PIL import Image

from deit_jax import data
from deit_jax.data import pipeline
from deit_jax.errors import ConfigError

SIZES = {"batch_size": 24, "repeats": 3, "mix_group": 8, "canvas": 48, "seed": 3}


def jpeg(index, width=20, height=30):
    rng = np.random.default_rng(index)
    with io.BytesIO() as file:
        image = rng.integers(0, 256, (height // 5, width // 5, 3), np.uint8)
        Image.fromarray(image).resize((width, height)).save(file, "JPEG")
        return file.getvalue()


class Encoded:
    """Records in memory; every tenth is larger than the canvas, `damaged` ones are truncated."""

    shard_lengths = (25, 25, 30)

    def __init__(self, n=80, damaged=(), window_shards=None):
        self.window_shards = window_shards
        self.records = [jpeg(i, 100 if i % 10 == 0 else 20) for i in range(n)]
        for i in damaged:
            self.records[i] = self.records[i][:100]
        self.events = []

    def __len__(self):
        return len(self.records)

    def get(self, indices):
        self.events.append(list(indices))
        return [self.records[i] for i in indices], np.asarray(indices) % 7

    def hint(self, indices):
        self.events.append("hint")

    def record_name(self, index):
        return f"record {index}"


@pytest.fixture(scope="module")
def source():
    return Encoded()


def first_batches(batches, n):
    with batches:
        return list(itertools.islice(batches, n))


def digest(batches):
    content = hashlib.sha256()
    for batch in batches:
        for key in sorted(batch):
            content.update(key.encode() + batch[key].tobytes())
    return content.hexdigest()


def test_batch_contract(source):
    (batch,) = first_batches(data.train_batches(source, **SIZES, device_count=4), 1)
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
        "canvas": ((12, 48, 48, 3), "uint8"),
        "size": ((12, 2), "int32"),
        "label": ((12,), "int32"),
        "index": ((12,), "int32"),
        "canvas_index": ((24,), "int32"),
    }
    for canvas, size, label, index in zip(
        batch["canvas"], batch["size"], batch["label"], batch["index"], strict=True
    ):
        if index < 0:
            assert not canvas.any() and not size.any()
            continue
        height, width = size
        assert label == index % 7
        assert (height, width) == ((14, 48) if index % 10 == 0 else (30, 20))
        assert not canvas[height:].any() and not canvas[:, width:].any()
        if index % 10:
            expected = Image.open(io.BytesIO(source.records[index]))
            np.testing.assert_array_equal(canvas[:height, :width], expected)
    (plain,) = first_batches(data.train_batches(source, batch_size=24, canvas=48), 1)
    assert "canvas_index" not in plain and plain["canvas"].shape[0] == 24


@pytest.mark.parametrize("window_shards", [None, 2])
def test_threads_prefetch_and_starts_do_not_change_the_sequence(window_shards):
    source = Encoded(window_shards=window_shards)
    expected = [
        digest([b]) for b in first_batches(data.train_batches(source, threads=1, **SIZES), 8)
    ]
    assert len(set(expected)) == 8
    for threads, prefetch in ((2, 0), (8, 5)):
        batches = data.train_batches(source, threads=threads, prefetch=prefetch, **SIZES)
        assert [digest([b]) for b in first_batches(batches, 8)] == expected
    for start in (1, 3, 6):
        (batch,) = first_batches(data.train_batches(source, start_step=start, **SIZES), 1)
        assert digest([batch]) == expected[start]


def test_a_start_at_step_ten_million_takes_no_longer_than_one_at_step_zero(tfds_dir):
    photos = data.open_data(name="imagenet2012", data_dir=str(tfds_dir)).train

    def seconds(start_step):
        start = time.perf_counter()
        batches = data.train_batches(photos, **SIZES, start_step=start_step)
        next(batches)
        took = time.perf_counter() - start
        batches.close()
        return took

    seconds(0)
    assert seconds(10_000_000) < 2 * seconds(0) + 0.5


@pytest.mark.parametrize("repeats", [1, 3])
def test_processes_together_make_the_single_process_batch(source, repeats):
    options = SIZES | {"repeats": repeats, "device_count": 4}
    whole = first_batches(data.train_batches(source, **options), 4)
    n = len(whole[0]["canvas"])
    for parts in (
        [range(n // 2), range(n // 2, n)],
        # A mesh may give a process rows that do not follow each other.
        [[i for i in range(n) if i // (n // 4) in group] for group in ((0, 3), (2,), (1,))],
    ):
        shares = [
            first_batches(data.train_batches(source, **options, rows=rows), 4) for rows in parts
        ]
        order = np.argsort(np.concatenate([list(rows) for rows in parts]))
        for step, batch in enumerate(whole):
            for key in ("canvas", "size", "label", "index"):
                joined = np.concatenate([share[step][key] for share in shares])[order]
                np.testing.assert_array_equal(joined, batch[key])
            if repeats > 1:
                for share in shares:
                    np.testing.assert_array_equal(
                        share[step]["canvas_index"], batch["canvas_index"]
                    )


@pytest.mark.parametrize("batch_size", [1, 16, 80, 96])
def test_evaluation_yields_every_image_once_in_order(source, batch_size):
    options = {"canvas": 48, "image_size": 16, "batch_size": batch_size}
    batches = list(data.eval_batches(source, **options))
    index = np.concatenate([b["index"][b["mask"]] for b in batches])
    np.testing.assert_array_equal(index, np.arange(80))
    assert all(len(b["mask"]) == batch_size for b in batches)
    assert all((b["index"][~b["mask"]] == -1).all() for b in batches)
    if batch_size > 1:
        half = batch_size // 2
        parts = [
            list(data.eval_batches(source, **options, rows=rows))
            for rows in (range(half), range(half, batch_size))
        ]
        for whole, first, second in zip(batches, *parts, strict=True):
            for key, value in whole.items():
                np.testing.assert_array_equal(np.concatenate([first[key], second[key]]), value)


def test_evaluation_crop_of_large_photos_equals_pillow(tfds_dir):
    """The canvas has the short side at its evaluation size: the device's resize changes nothing."""
    photos = data.open_data(name="imagenet2012", data_dir=str(tfds_dir)).eval
    large = 0
    options = {"canvas": 400, "image_size": 224, "crop_ratio": 0.875, "batch_size": 25}
    for batch in data.eval_batches(photos, **options):
        for canvas, size, index in zip(batch["canvas"], batch["size"], batch["index"], strict=True):
            image = Image.open(io.BytesIO(photos.get([index])[0][0])).convert("RGB")
            if max(image.size) <= 400:
                assert tuple(size) == image.size[::-1]
                continue
            large += 1
            scale = 256 / min(image.size)
            width, height = (
                256 if side == min(image.size) else int(256 * side / min(image.size))
                for side in image.size
            )
            assert scale and size.tolist() == [256, 256]
            whole = np.asarray(image.resize((width, height), Image.BICUBIC))
            top, left = round((height - 224) / 2), round((width - 224) / 2)
            np.testing.assert_array_equal(
                canvas[16:240, 16:240], whole[top : top + 224, left : left + 224]
            )
    assert large > 20


def test_evaluation_needs_a_canvas_of_the_resized_short_side(source):
    with pytest.raises(ConfigError, match="canvas must be at least 256, not 255"):
        data.eval_batches(source, batch_size=8, canvas=255, image_size=224)


def test_corrupt_record_is_replaced_counted_and_named(caplog):
    damaged = Encoded(damaged=[11, 12, 40])
    options = SIZES | {"batch_size": 80, "mix_group": 8, "repeats": 1}
    expected = first_batches(data.train_batches(Encoded(), **options), 1)[0]["index"]
    digests = set()
    for threads in (1, 8):
        batches = data.train_batches(damaged, threads=threads, max_corrupt_share=0.05, **options)
        batch, _ = first_batches(batches, 2)
        digests.add(digest([batch]))
        replaced = {11: 13, 12: 13, 40: 41}
        assert batch["index"].tolist() == [replaced.get(i, i) for i in expected.tolist()]
        assert (batch["size"] > 0).all() and (batch["label"] == batch["index"] % 7).all()
        assert batches.health.corrupt_names == {i: f"record {i}" for i in replaced}
    assert len(digests) == 1
    # Once by each of the two iterators, though every record is in both batches.
    assert caplog.text.count("cannot decode record 40") == 2


def test_corrupt_record_is_masked_in_evaluation():
    damaged = Encoded(damaged=[11, 79])
    options = {"batch_size": 32, "canvas": 48, "image_size": 16, "max_corrupt_share": 0.05}
    batches = data.eval_batches(damaged, **options)
    index = np.concatenate([b["index"][b["mask"]] for b in batches])
    assert index.tolist() == [i for i in range(80) if i not in (11, 79)]
    assert batches.health.corrupt_names == {11: "record 11", 79: "record 79"}


@pytest.mark.parametrize("damaged", [[5], range(80)])
def test_too_many_corrupt_records_stop_the_run(damaged):
    batches = data.train_batches(Encoded(damaged=damaged), **SIZES)
    with pytest.raises(data.CorruptShareExceeded, match="max_corrupt_share=0.001.*record"):
        first_batches(batches, 10)
    with pytest.raises(StopIteration):
        next(batches)


def test_allowed_share_of_corrupt_records():
    damaged = Encoded(damaged=[5, 6])
    first_batches(
        data.train_batches(damaged, batch_size=80, canvas=48, max_corrupt_share=2 / 80), 2
    )
    with pytest.raises(data.CorruptShareExceeded, match="2 of 80 .* above 0.025"):
        first_batches(
            data.train_batches(damaged, batch_size=80, canvas=48, max_corrupt_share=0.02), 2
        )


@pytest.mark.parametrize("canvas", [48, 99, 100])
def test_images_larger_than_the_canvas_are_counted(source, canvas):
    """Also of those that the decoder already halves (100 pixels wide on 48)."""
    batches = data.train_batches(source, batch_size=80, canvas=canvas)
    first_batches(batches, 1)
    assert (batches.health.images, batches.health.shrunk) == (80, 8 if canvas < 100 else 0)


def test_memory_is_reused_but_never_while_an_array_refers_to_it(source):
    """Neither a view nor a device array of an old batch may change."""
    expected = first_batches(data.train_batches(source, **SIZES), 12)
    with data.train_batches(source, **SIZES) as batches:
        first, second = next(batches), next(batches)
        view, device = first["canvas"][1:3, :5], jax.device_put(second["canvas"])
        del first, second
        places = set()
        for step in range(2, 12):
            batch = next(batches)
            places.add(batch["canvas"].ctypes.data)
            np.testing.assert_array_equal(batch["canvas"], expected[step]["canvas"])
            del batch
    np.testing.assert_array_equal(view, expected[0]["canvas"][1:3, :5])
    np.testing.assert_array_equal(device, expected[1]["canvas"])
    assert len(places) < 7


def test_an_error_of_the_source_comes_out():
    class Broken(Encoded):
        def get(self, indices):
            raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        next(data.train_batches(Broken(), **SIZES))


def test_windows_hint_only_after_the_first_batch():
    windows = Encoded(window_shards=1)
    (first,) = first_batches(data.train_batches(windows, **SIZES, prefetch=2), 1)
    read = set(itertools.chain(*windows.events[: windows.events.index("hint")]))
    assert set(first["index"][first["index"] >= 0].tolist()) <= read


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "threads must be at least 1, or None for one per core, not 0"),
        ({"prefetch": -1}, "prefetch must be at least 0, not -1"),
        ({"max_corrupt_share": 1.5}, r"max_corrupt_share must be in \[0, 1\], not 1.5"),
        ({"max_pixels": 0}, "max_pixels must be at least 1, not 0"),
    ],
)
def test_options_out_of_range(source, options, message):
    with pytest.raises(ConfigError, match=message):
        data.train_batches(source, **SIZES, **options)
    with pytest.raises(ConfigError, match=message):
        data.eval_batches(source, batch_size=8, canvas=32, image_size=16, **options)


def test_rows_outside_the_batch(source):
    with pytest.raises(ValueError, match="rows 5..12 are outside the 9 rows"):
        data.train_batches(source, **SIZES, rows=range(5, 13))


def test_closing_ends_the_threads(source):
    before = threading.active_count()
    batches = data.train_batches(source, threads=4, **SIZES)
    next(batches)
    batches.close()
    batches.close()
    assert threading.active_count() == before
    batches = data.train_batches(source, threads=4, **SIZES)
    next(batches)
    del batches
    assert threading.active_count() == before


def test_a_program_that_never_closes_still_ends():
    program = """
from deit_jax import data
digits = data.open_data(source="digits").train
batches = data.train_batches(digits, batch_size=32, canvas=8)
ahead = data.prefetch_to_device(data.train_batches(digits, batch_size=32, canvas=8), lambda b: b)
next(batches), next(ahead)
raise SystemExit(3)
"""
    root = pipeline.__file__.partition("deit_jax/data")[0]
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", program]
    done = subprocess.run(command, cwd=root, timeout=60, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (3, "")
