"""Extraction of features and k-NN against straightforward code, and a second call that reads what the first has kept.

    python -m training.benchmarks.frozen_evaluation [--images 2000] [--train 50000] [--test 10000] [--width 384]

Extraction: the first test images of the embedded sample through an untrained ViT; straightforward is a loop in one process that
decodes by PIL, calls the image processor and encodes batches of 64. k-NN: random features, k = 20; straightforward are chunks
of 100 test images with one-hot votes, as DINO's evaluation has them. Seconds of wall time, all variants in this process.
"""

import io
import tempfile
from pathlib import Path
from time import perf_counter

import torch
import torch.nn.functional as F
from datasets import Image as ImageFeature
from datasets import load_dataset
from PIL import Image
from torch import Tensor
from transformers import BitImageProcessor, ViTConfig, ViTModel

from hssl_hf.data.source import Source
from hssl_hf.engine.distributed import make_accelerator
from hssl_hf.evaluation.encoder import load_encoder
from hssl_hf.evaluation.extraction import ExtractionConfig, Extractor
from hssl_hf.evaluation.feature_cache import FeatureCache
from hssl_hf.evaluation.features import Representation
from hssl_hf.evaluation.images import LabeledImages
from hssl_hf.evaluation.knn import knn_scores
from training.benchmarks.harness import benchmark_parser

SAMPLE = Path(__file__).parents[1] / "data" / "fashion_mnist"
SIDE = 112


def timed(function) -> tuple[float, Tensor]:
    started = perf_counter()
    result = function()
    return perf_counter() - started, result


def straightforward_extraction(model: ViTModel, processor: BitImageProcessor, images: int) -> Tensor:
    rows = load_dataset("parquet", data_files=str(SAMPLE / "train-*.parquet"), split="train")
    rows, features, batch = rows.cast_column("image", ImageFeature(decode=False)), [], []
    with torch.no_grad():
        for index in range(images):
            batch.append(Image.open(io.BytesIO(rows[index]["image"]["bytes"])).convert("RGB"))
            if len(batch) == 64 or index + 1 == images:
                pixels = processor(batch, return_tensors="pt")["pixel_values"]
                features.append(model(pixels).last_hidden_state[:, 0])
                batch = []
    return torch.cat(features)


def straightforward_knn(
    train: Tensor, labels: Tensor, test: Tensor, classes: int, k: int = 20, temperature: float = 0.07
) -> Tensor:
    train, predicted = F.normalize(train, dim=1).t(), []
    for features in F.normalize(test, dim=1).split(100):
        distances, indices = torch.mm(features, train).topk(k, largest=True, sorted=True)
        neighbors = labels.view(1, -1).expand(len(features), -1).gather(1, indices)
        one_hot = torch.zeros(len(features) * k, classes).scatter_(1, neighbors.view(-1, 1), 1)
        weights = (distances / 0.07).exp()
        votes = (one_hot.view(len(features), k, classes) * weights[..., None]).sum(1)
        predicted.append(votes.argmax(1))
    return torch.cat(predicted)


def compare_extraction(images: int) -> None:
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=192, num_hidden_layers=6, num_attention_heads=3, intermediate_size=768, image_size=SIDE)
    model = ViTModel(config, add_pooling_layer=False).eval()
    processor = BitImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        encoder, prepared = load_encoder(folder)
        split = LabeledImages(Source(str(SAMPLE)), limit=images)
        run = Extractor(make_accelerator(False, 1, 1), prepared, ExtractionConfig(), FeatureCache(1.0, Path(folder) / "cache"))
        plain, expected = timed(lambda: straightforward_extraction(model, processor, images))
        ours, first = timed(lambda: run.extract(encoder, split, Representation()).features)
        again, second = timed(lambda: run.extract(encoder, split, Representation()).features)
    difference = (first - expected).abs().max().item()
    print(f"extraction of {images} images of {SIDE} pixels (largest difference {difference:.1e})")
    for name, value in (("straightforward", plain), ("ours", ours), ("ours, again", again)):
        print(f"  {name:18}{value:8.2f} s{images / value:10.0f} images/s{value / plain:8.3f}×")
    if not torch.equal(first, second):
        raise SystemExit("the kept features are others")


def compare_knn(train: int, test: int, width: int, classes: int = 10) -> None:
    generator = torch.Generator().manual_seed(0)
    features, queries = torch.randn(train, width, generator=generator), torch.randn(test, width, generator=generator)
    labels = torch.randint(0, classes, (train,), generator=generator)
    plain, expected = timed(lambda: straightforward_knn(features, labels, queries, classes))
    ours, scores = timed(lambda: knn_scores(features, labels, queries))
    same = (scores.argmax(1) == expected).double().mean().item()
    print(f"k-NN of {test} among {train} images, {width} dimensions ({100 * same:.2f} % the same classes)")
    for name, value in (("straightforward", plain), ("ours", ours)):
        print(f"  {name:18}{value:8.2f} s{value / plain:8.3f}×")


def main() -> None:
    options = benchmark_parser(__doc__, images=2000, train=50_000, test=10_000, width=384).parse_args()
    compare_extraction(options.images)
    compare_knn(options.train, options.test, options.width)


if __name__ == "__main__":
    main()
