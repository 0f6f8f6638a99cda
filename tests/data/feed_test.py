"""Encoded images through the tf.data graph: which ones, what happens to the others, its end."""

import io
import subprocess
import sys
from typing import Any, cast

import numpy as np
import pytest
from data.decode_test import FILES, RGB, encode, pillow
from data.pipeline_test import SIZES, Encoded, digest, first_batches
from PIL import Image

from deit_jax import data
from deit_jax.data import feed, pipeline
from deit_jax.data.canvases import Plan

ROOT = pipeline.__file__.partition("deit_jax/data")[0]
KINDS = [*FILES.values(), encode(Image.new("CMYK", (40, 30), (10, 90, 30, 50)), "JPEG")]


class Kinds(Encoded):
    """Every kind of image file, once."""

    def __init__(self):
        self.records = KINDS
        self.events = []


def whole(source, **options):
    """One batch of all records in their order, and the iterator it came from."""
    sizes = {"batch_size": len(source), "canvas": 128, "image_size": 64}
    batches = data.eval_batches(source, **sizes, **options)
    return first_batches(batches, 1)[0], batches


@pytest.mark.parametrize("most_pixels", [feed._MOST_PIXELS, 61 * 83 - 1])
def test_every_kind_of_file_equals_pillow(most_pixels, monkeypatch):
    """Also those that are too large for the graph, which Python decodes."""
    monkeypatch.setattr(feed, "_MOST_PIXELS", most_pixels)
    batch, _ = whole(Kinds(), threads=2)
    assert batch["mask"].all()
    for canvas, (height, width), encoded in zip(batch["canvas"], batch["size"], KINDS, strict=True):
        np.testing.assert_array_equal(canvas[:height, :width], pillow(encoded))
        assert not canvas[height:].any() and not canvas[:, width:].any()


def test_the_graph_decodes_all_but_a_few_kinds(monkeypatch):
    """What Python decodes holds the interpreter's lock: of these it is CMYK, BMP, 16-bit gray."""
    decoded = []
    original = pipeline.Reader.fill_row

    def fill_row(self, chunk, i, image, label):
        decoded.append(image)
        original(self, chunk, i, image, label)

    monkeypatch.setattr(pipeline.Reader, "fill_row", fill_row)
    whole(Kinds())
    expected = [FILES["png 16 gray"], FILES["bmp"], KINDS[-1]]
    assert sorted(decoded) == sorted(expected)


def test_the_graph_has_no_state():
    """No operation draws, counts or swallows errors; Python's are declared stateless."""
    built = feed.Feed(Plan(iter(()), 4), cast(Any, None), size=4, threads=2, ahead=1)
    dataset = stage = built._dataset()
    ops = set()
    while hasattr(stage, "_input_dataset"):
        for function in stage._functions():
            definition = function.function.graph.as_graph_def()
            bodies = [definition.node, *(one.node_def for one in definition.library.function)]
            ops |= {node.op for nodes in bodies for node in nodes}
        stage = stage._input_dataset
    assert {"PyFuncStateless", "DecodeJpeg"} <= ops
    assert not ops & {"PyFunc", "EagerPyFunc"} and not [op for op in ops if "Random" in op]
    options = dataset.options()
    assert options.threading.private_threadpool_size == 2
    assert not options.autotune.enabled


def test_a_corrupt_record_is_replaced_alike_after_a_restart():
    """With copies, over several epochs, whether or not this process has met the record before."""
    damaged = Encoded(damaged=[3, 11, 12, 40, 79])
    options = SIZES | {"max_corrupt_share": 0.2}
    batches = data.train_batches(damaged, **options, threads=2)
    expected = [digest([batch]) for batch in first_batches(batches, 9)]
    assert batches.health.corrupt_names
    for start in (1, 4, 8):
        restarted = data.train_batches(damaged, **options, start_step=start, threads=1, prefetch=0)
        assert digest(first_batches(restarted, 1)) == expected[start]


def test_a_record_is_decoded_in_vain_once(monkeypatch):
    """The chunk of a corrupt record is filled again image by image, only the first time."""
    again = []
    original = pipeline.Reader.fill

    def fill(self, chunk):
        again.append(chunk)
        original(self, chunk)

    monkeypatch.setattr(pipeline.Reader, "fill", fill)
    damaged = Encoded(n=40, damaged=[5])
    with data.train_batches(damaged, 40, canvas=48, max_corrupt_share=0.1) as batches:
        for _ in range(20):
            assert 5 not in next(batches)["index"]
    assert 0 < len(again) < 8


def test_digits_need_no_tensorflow():
    """Nor do a user's arrays: importing it fails here, and nothing tries to."""
    program = """
import sys
sys.modules["tensorflow"] = None
import numpy as np
from deit_jax import data
opened = data.open_data(source="digits")
with data.train_batches(opened.train, batch_size=32, canvas=8, repeats=2) as batches:
    assert next(batches)["canvas"].any()
with data.eval_batches(opened.eval, batch_size=355, canvas=9, image_size=8) as batches:
    assert next(batches)["mask"].all()
assert not [name for name in sys.modules if name.startswith("tensorflow.")]
"""
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, cwd=ROOT, timeout=240, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.long
@pytest.mark.parametrize(
    ("end", "status"), [("signal.raise_signal(signal.SIGINT)", -2), ("raise SystemExit(3)", 3)]
)
def test_a_process_ends_with_its_threads_at_work(tmp_path, end, status):
    with io.BytesIO() as file:
        RGB.resize((900, 700)).save(file, "JPEG")
        (tmp_path / "photo.jpg").write_bytes(file.getvalue())
    program = f"""
import pathlib, signal, time
import numpy as np
from deit_jax import data
photo = pathlib.Path({str(tmp_path)!r}, "photo.jpg").read_bytes()

class Photos(data.Source):
    def __len__(self):
        return 4000

    def get(self, indices):
        time.sleep(0.01)
        return [photo] * len(indices), np.zeros(len(indices), np.int64)

batches = data.train_batches(Photos(), 64, canvas=512)
ahead = data.prefetch_to_device(data.train_batches(Photos(), 64, canvas=512), lambda b: b)
next(batches), next(ahead)
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell's `&` started this
{end}
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, timeout=240, capture_output=True, text=True)
    assert done.returncode == status
    assert "Traceback" not in done.stderr or "KeyboardInterrupt" in done.stderr
