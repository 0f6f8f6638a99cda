"""Host CPU-seconds per augmented sample of timm's `create_transform`, the published DeiT recipe.

Run by `host_data.py` in an environment that has torch, timm and Pillow < 13:

    python benchmarks/host_data_timm.py FOLDER_OF_JPEGS SAMPLES

Prints one JSON object. Every sample is decoded and augmented, as in the reference's loader, which
decodes an image again for each repeat; collating into batches is not included.
"""

import io
import json
import pathlib
import sys
import time

import PIL
import torch
from PIL import Image


def make_transform():
    library = torch.library.Library("torchvision", "DEF")
    # A torchvision built for another torch lacks these two; nothing here calls them.
    for name in ("nms", "qnms"):
        try:
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        except RuntimeError:
            pass
    import timm
    from timm.data import create_transform

    transform = create_transform(
        input_size=224,
        is_training=True,
        color_jitter=0.3,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
        re_count=1,
    )
    return transform, timm.__version__, library


def main() -> None:
    folder, samples = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    files = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    transform, version, _library = make_transform()

    def run(count):
        for i in range(count):
            transform(Image.open(io.BytesIO(files[i % len(files)])).convert("RGB"))

    run(20)
    start = time.process_time()
    run(samples)
    seconds = time.process_time() - start
    print(
        json.dumps(
            {
                "cpu_ms_per_sample": 1e3 * seconds / samples,
                "samples": samples,
                "timm": version,
                "torch": torch.__version__,
                "pillow": PIL.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
