"""Kinds of image files: those that are decoded here, and what to do with the others."""

from collections.abc import Iterable

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp")
# Name -> its extensions, what to convert it to, where in the file its marks are, the marks.
OTHERS: dict[str, tuple[tuple[str, ...], str, int, tuple[bytes, ...]]] = {
    "HEIC": (
        (".heic", ".heif", ".hif"),
        "jpg",
        4,
        (b"ftypheic", b"ftypheix", b"ftypheim", b"ftyphevc", b"ftypmif1", b"ftypmsf1"),
    ),
    "AVIF": ((".avif",), "jpg", 4, (b"ftypavif", b"ftypavis")),
    "GIF": ((".gif",), "png", 0, (b"GIF8",)),
    "TIFF": ((".tif", ".tiff"), "png", 0, (b"II*\0", b"MM\0*")),
}


def is_image(name: str) -> bool:
    """Whether a file is decoded here, by its name; dot files are not."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def describe(data: bytes) -> str:
    """What is wrong with the content of a file that no decoder here takes, and what to do."""
    if not data:
        return "no content"
    for kind, (extensions, _, position, marks) in OTHERS.items():
        if data.startswith(marks, position):
            return f"a {kind} file; {remedy(extensions[0])}"
    return "not JPEG, PNG, BMP or WebP"


def remedy(extension: str) -> str:
    """The command that converts files of an extension; empty for no kind of image."""
    for kind, (extensions, target, *_) in OTHERS.items():
        if extension.lower() in extensions:
            to = {"jpg": "JPEG", "png": "PNG"}[target]
            return f"convert {kind} files to {to}: magick mogrify -format {target} *{extension}"
    return ""


def ignored(extensions: Iterable[str]) -> str:
    """`3 files ignored: 2 .gif, 1 .txt; convert GIF ...`: files that are not images, by extension.

    Empty for none.
    """
    counts: dict[str, int] = {}
    for extension in extensions:
        counts[extension.lower()] = counts.get(extension.lower(), 0) + 1
    if not counts:
        return ""
    kinds = sorted(counts, key=lambda kind: (-counts[kind], kind))
    parts = [f"{counts[kind]:,} {kind or 'without extension'}" for kind in kinds]
    total = sum(counts.values())
    text = f"{total:,} file{'s' * (total > 1)} ignored: {', '.join(parts[:8])}"
    remedies = [remedy(kind) for kind in kinds if remedy(kind)]
    return "; ".join([text + ", ..." * (len(parts) > 8), *remedies])
