"""Rebuild the embedded sample from the four IDX files of Fashion-MNIST (Debian package dataset-fashion-mnist).

    python training/data/build.py /usr/share/datasets/fashion-mnist

The sample is balanced (the same number of images of every class), drawn with a fixed seed and shuffled, so that it is the
same on every machine. Images are stored as PNG, without loss.
"""

import argparse
import gzip
import io
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage

CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
SPLITS = {"train": ("train", 10_000, 4), "test": ("t10k", 2_000, 1)}  # split: (file prefix, images, shards)


def read_idx(path: Path, header: int) -> np.ndarray:
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder with the four *-ubyte.gz files")
    source = parser.parse_args().source
    target = Path(__file__).parent / "fashion_mnist"
    features = Features({"image": Image(), "label": ClassLabel(names=CLASSES)})
    for split, (prefix, count, shards) in SPLITS.items():
        images = read_idx(source / f"{prefix}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
        labels = read_idx(source / f"{prefix}-labels-idx1-ubyte.gz", 8)
        rng = np.random.default_rng(0)
        chosen = [rng.choice(np.flatnonzero(labels == c), count // len(CLASSES), replace=False) for c in range(10)]
        chosen = rng.permutation(np.concatenate(chosen))
        rows = {"image": [{"bytes": png(images[i]), "path": None} for i in chosen], "label": labels[chosen].tolist()}
        table = Dataset.from_dict(rows, features=features)
        for shard in range(shards):
            table.shard(shards, shard, contiguous=True).to_parquet(target / f"{split}-{shard:05d}-of-{shards:05d}.parquet")


if __name__ == "__main__":
    main()
