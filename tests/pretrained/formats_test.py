"""Damaged and hostile weight files: refused in one line, or read as they were; nothing runs."""

import io
import os
import pickle
import random
import struct
import zipfile

import numpy as np
import pytest
from reference.random_weights import random_state

from deit_jax import models, pretrained, trees
from deit_jax.errors import ConfigError
from deit_jax.pretrained.formats import detect, names
from deit_jax.pretrained.formats.pickles import PickleRefused, load_state
from deit_jax.pretrained.formats.safetensors_file import read_safetensors, write_safetensors
from deit_jax.pretrained.formats.torch_file import read_torch

MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
SYSTEM = pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {}}, 2)


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile_pickles(marker):
    """(what is refused, pickle) pairs that would make the file `marker`, or worse."""
    command = f"touch {marker}"
    text = b"X" + struct.pack("<I", len(command)) + command.encode()
    shell = b"cposix\nsystem\n"
    return [
        ("posix.system", pickle.dumps(Call(os.system, command), 2)),
        ("posix.system", pickle.dumps({"model": {"a": Call(os.system, command)}}, 4)),
        ("__builtin__.eval", pickle.dumps(Call(eval, f"open({str(marker)!r}, 'w')"), 2)),
        ("builtins.exec", pickle.dumps([Call(exec, f"open({str(marker)!r}, 'w')")], 5)),
        ("__builtin__.getattr", pickle.dumps(Call(getattr, 1, "real"), 2)),
        ("posix.system", b"\x80\x02" + shell + text + b"\x85R."),
        ("INST", b"(" + text + b"iposix\nsystem\n."),
        ("posix.system", b"(" + shell + text + b"o."),
        ("STRING", b"S'" + command.encode() + b"'\n."),
        ("posix.system", b"\x80\x02" + shell + b")\x81."),
        ("EXT1", b"\x80\x02\x82\x01."),
        ("PERSID", b"Pwhatever\n."),
        ("collections.OrderedDict", b"\x80\x02ccollections\nOrderedDict\n]\x85R."),
        ("set attributes", b"\x80\x02ccollections\nOrderedDict\n}b."),
        ("call a dict", b"\x80\x02})R."),
        ("numpy.poly1d", pickle.dumps({"a": np.poly1d}, 2)),
        ("make an object", b"\x80\x02cnumpy\nndarray\n)\x81."),
        ("numpy.ndarray", b"\x80\x02cnumpy\nndarray\n)R."),
        ("argparse", b"\x80\x02cargparse\nNamespace\n)R."),
        ("argparse", b"\x80\x02cargparse\nNamespaces\n)\x81."),
        ("make an object", b"\x80\x02cargparse\nNamespace\n}\x81."),
        ("make an object", b"\x80\x02ccollections\nOrderedDict\n)\x81."),
        # Each holds the one before twice: its hash takes 2^60 steps.
        ("tuple as key", b"\x80\x02}" + b")" + b"q\x00h\x00\x86" * 60 + b"K\x01s."),
        ("tuple as key", b"\x80\x02}" + b")" + b"\x85" * 1_000_000 + b"K\x01s."),
        ("storage reference", b"\x80\x02X\x01\x00\x00\x00aQ."),
        ("ends early", b"\x80\x02}"),
        ("BYTEARRAY8", b"\x80\x05\x96" + struct.pack("<Q", 1 << 60) + b"."),
        ("damaged", b"\x80\x02h\x07."),
        ("mark", b"\x80\x02(."),
        ("no mark", b"\x80\x02Nt."),
    ]


def as_zip(content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", content)
    return file.getvalue()


def test_hostile_pickles_are_refused_by_name(tmp_path):
    marker = tmp_path / "executed"
    for word, content in hostile_pickles(marker):
        for data in (as_zip(content), MAGIC + SYSTEM + content, content):
            path = tmp_path / "hostile.pth"
            path.write_bytes(data)
            with pytest.raises(ConfigError) as caught:
                pretrained.load_checkpoint(path)
            text = str(caught.value)
            assert str(path) in text and "\n" not in text
            if data is not content:
                assert word in text, (word, text)
        assert not marker.exists()


def test_values_of_the_wrong_kind_are_damage(tmp_path):
    path = tmp_path / "odd.pth"
    path.write_bytes(MAGIC + pickle.dumps(7, 2) + pickle.dumps({}, 2) + pickle.dumps([], 2))
    with pytest.raises(ConfigError, match="damaged file"):
        read_torch(path)
    with pytest.raises(ConfigError, match=r"head.weight is \(\)"):
        detect.num_classes({"head.weight": ()})
    with pytest.raises(ConfigError, match="no classification head"):
        detect.num_classes({"head.bias": (3,)})


def test_a_list_that_holds_itself_ends():
    state = load_state(io.BytesIO(b"\x80\x02]q\x00h\x00a."))
    assert state[0] is state


@pytest.mark.parametrize(
    ("member", "content", "text"),
    [
        ("archive/byteorder", b"middle", "unknown byte order"),
        ("other/data.pkl", b".", "not one data.pkl"),
    ],
)
def test_odd_archives_are_refused(vectors, tmp_path, member, content, text):
    path = tmp_path / "odd.pth"
    with zipfile.ZipFile(vectors / "models_zip.pth") as source, zipfile.ZipFile(path, "w") as to:
        for info in source.infolist():
            name = info.filename.replace("models_zip", "archive")
            if name != member:
                to.writestr(name, source.read(info))
        to.writestr(member, content)
    with pytest.raises(ConfigError, match=text):
        read_torch(path)


def test_compressed_archives_are_refused(tmp_path):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}." + bytes(1 << 20))
    with pytest.raises(ConfigError, match="compressed member archive/data.pkl"):
        read_torch(path)


def test_unknown_globals_are_never_looked_up():
    with pytest.raises(PickleRefused, match="no_such_module.thing"):
        load_state(io.BytesIO(b"cno_such_module\nthing\n."))


@pytest.fixture(scope="module")
def model():
    return models.create_model(
        "deit_tiny_distilled_patch16_224",
        num_classes=3,
        image_size=16,
        patch_size=8,
        embed_dim=8,
        depth=2,
        num_heads=2,
    )


@pytest.fixture(scope="module")
def state(model):
    return random_state({e.names[0]: e.part_shape for e in names.entries(model, "timm")})


def test_safetensors_carry_strided_arrays_scalars_and_notes(tmp_path):
    tensors = {"t": np.arange(6, dtype=np.float32).reshape(2, 3).T, "n": np.array(0)}
    write_safetensors(tmp_path / "a.safetensors", tensors, {"names": ("a", "b")})
    found, notes = read_safetensors(tmp_path / "a.safetensors")
    assert notes == {"names": ["a", "b"]}
    np.testing.assert_array_equal(found["t"], tensors["t"])
    assert found["n"].shape == () and found["n"].dtype == np.int64


def damaged(data, rng, protected):
    """One of six ways to damage a file before byte `protected` (beyond it nothing is checked)."""
    kind = rng.randrange(6)
    position = rng.randrange(protected)
    if kind == 0:
        return data[: rng.randrange(len(data))]
    if kind == 1:
        return data[:position] + data[position + rng.randrange(1, 40) :]
    if kind == 2:
        return data[:position] + rng.randbytes(rng.randrange(1, 9)) + data[position:]
    changed = bytearray(data)
    if kind == 3:
        width = min(rng.randrange(2, 30), protected - position)
        changed[position : position + width] = rng.randbytes(width)
    else:
        changed[position] ^= 1 << rng.randrange(8)
    return bytes(changed)


def test_a_thousand_damaged_files_are_refused_or_equal(vectors, tmp_path, state, model):
    """Where the format has checksums (zip) or we added a digest, any byte may be hit.

    Old `.pth` streams and safetensors files of others have none over their numbers; there
    the structure is hit.
    """
    expected = trees.named_leaves(names.read(names.entries(model, "timm"), state))
    ours, foreign = tmp_path / "o.safetensors", tmp_path / "f.safetensors"
    write_safetensors(ours, state, {})
    from safetensors.numpy import save

    foreign.write_bytes(save(state))
    bases = []
    for path in (vectors / "models_zip.pth", vectors / "models_legacy.pth", ours, foreign):
        data = path.read_bytes()
        protected = len(data)
        if path.name == "models_legacy.pth":
            protected = _pickles_end(data)
        elif path == foreign:
            protected = 8 + int.from_bytes(data[:8], "little")
        bases.append((path.suffix, data, protected))
    rng = random.Random(0)
    refused = 0
    for number in range(1000):
        suffix, data, protected = bases[number % len(bases)]
        path = tmp_path / f"damaged{suffix}"
        path.write_bytes(damaged(data, rng, protected))
        try:
            loaded = pretrained.load_checkpoint(path, model_kwargs={"num_heads": 2})
        except ConfigError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error), error
            continue
        assert loaded.create_model() == model, number
        found = trees.named_leaves(loaded.variables)
        assert found.keys() == expected.keys()
        for path, wanted in expected.items():
            np.testing.assert_array_equal(found[path], wanted, err_msg=f"{number} {path}")
    assert refused > 700


def _pickles_end(data):
    file = io.BytesIO(data)
    for _ in range(5):
        load_state(file)
    return file.tell()


def test_a_digest_in_the_name_is_checked(vectors, tmp_path):
    import hashlib

    data = (vectors / "models_legacy.pth").read_bytes()
    digest = hashlib.sha256(data).hexdigest()[:8]
    path = tmp_path / f"model-{digest}.pth"
    path.write_bytes(data)
    pretrained.load_checkpoint(path, model_kwargs={"num_heads": 2})
    # A flipped bit among the numbers, which the format itself does not notice.
    path.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    with pytest.raises(ConfigError, match="SHA-256 starts with"):
        pretrained.load_checkpoint(path)
