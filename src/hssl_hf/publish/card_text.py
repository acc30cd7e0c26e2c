"""Texts of a model card: summary, code snippets, figure captions, training, limitations."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hssl_hf.models.configuration_base import PreTrainingConfig

FIGURES = {  # path -> caption
    "curves.png": "Training curves: losses, discrepancy or collapse, k-NN accuracy.",
    "figures/components.png": "First three principal components of the patch features as red, green and blue.",
    "figures/attention.png": "Attention of the class token in the last block, one map per head.",
    "figures/neighbors.png": "Test images and their nearest neighbors by cosine similarity.",
    "figures/views.png": "Views of the first training images, as the student received them.",
}
TRAINING = {
    "data": lambda m: _data(m["data"]),
    "images seen": lambda m: f"{m['images_seen']:,}" if "images_seen" in m else None,
    "steps": lambda m: f"{m['steps']:,}" if "steps" in m else None,
    "undecodable images": lambda m: m.get("undecodable") or None,
    "wall time": lambda m: _duration(m["seconds"]) if "seconds" in m else None,
    "estimated": lambda m: _estimated(m["estimate"]) if m.get("estimate") else None,
    "images per second": lambda m: f"{m['images_per_second']:,.1f}" if "images_per_second" in m else None,
    "peak memory per process": lambda m: f"{m['peak_memory_gib']:.2f} GiB" if "peak_memory_gib" in m else None,
    "hardware": lambda m: (
        f"{m['processes']} × {m['hardware']['device']} ({m['hardware']['cores']} cores), strategy {m['engine']}"
    ),
    "seed": lambda m: m["seed"],
    "versions": lambda m: ", ".join(f"{name} {version}" for name, version in m["versions"].items()),
    "commit": lambda m: f"`{m['commit']}`" if m["commit"] else None,
}


@dataclass
class Snippets:
    """Code that loads a model, in six lines at most.

    Args:
        repository, kind, revision, branches: as in `model_card.render`.
        facts: from `model_card.facts`.
        model_class: name of the class for pre-training in this package.
    """

    repository: str
    kind: str
    revision: str
    branches: dict[str, str]
    facts: dict
    model_class: str

    def usage(self) -> str:
        if self.kind == "training":
            source, name = self._source(self.branches["training"]), self.model_class
            return f"from hssl_hf import {name}\n\nmodel = {name}.from_pretrained({source})"
        if self.kind == "timm":
            return self.timm()
        source = self._source(self.revision)
        auto = "AutoModelForImageClassification" if self.kind == "classifier" else "AutoModel"
        lines = [
            "from PIL import Image",
            f"from transformers import AutoImageProcessor, {auto}",
            "",
            f"processor = AutoImageProcessor.from_pretrained({source})",
            f"model = {auto}.from_pretrained({source}).eval()",
            'inputs = processor(Image.open("image.png").convert("RGB"), return_tensors="pt")',
        ]
        if self.kind == "classifier":
            return "\n".join([*lines, "label = model(**inputs).logits.argmax(-1)"])
        if not self.facts["without_norm"]:
            return "\n".join([*lines, "features = model(**inputs).pooler_output"])
        hidden = "hidden = model(**inputs, output_hidden_states=True).hidden_states[-1]  # of the last block, without norm"
        mean = "features = torch.nn.functional.layer_norm(hidden[:, 1:].mean(1), hidden.shape[-1:], eps=1e-6)"
        cls = "cls = hidden[:, 0]  # few labels"
        return "\n".join(["import torch", *lines, hidden, f"{mean}  # linear probe, fine-tuning", cls])

    def timm(self) -> str:
        branch = self.branches["timm"]
        revision = "" if branch == "main" else f"@{branch}"
        return "\n".join([
            "import timm",
            "from PIL import Image",
            "",
            f'model = timm.create_model("hf-hub:{self.repository}{revision}", pretrained=True).eval()',
            "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
            'features = model(transform(Image.open("image.png").convert("RGB"))[None])',
        ])  # fmt: skip

    def about(self) -> str:
        if self.kind == "training":
            return "`model.encode(pixels)` returns the tokens of the base; `hssl-hf export` writes the base as a stock model."
        if self.kind == "classifier":
            return "It is a timm model in transformers' `TimmWrapperForImageClassification`."
        if not self.facts["without_norm"]:
            return "" if self.kind == "timm" else ABOUT_PLAIN
        return ABOUT_TIMM_WITHOUT_NORM if self.kind == "timm" else ABOUT_WITHOUT_NORM

    def _source(self, branch: str) -> str:
        """Arguments of `from_pretrained`."""
        return f'"{self.repository}"' + ("" if branch == "main" else f', revision="{branch}"')


ABOUT_PLAIN = """\
`pooler_output` is the representation of the image; `last_hidden_state` contains those of its patches."""
ABOUT_WITHOUT_NORM = """\
This backbone was trained **without a norm after its last block**, so its features are `hidden_states[-1]`.
`last_hidden_state` is the output of a layer norm that was absent in training: the norm of a mean is not the mean of norms.
As features of an image use the layer norm of the mean patch token (linear probe, fine-tuning) or the class token without
norm (few labels)."""
ABOUT_TIMM_WITHOUT_NORM = """\
This backbone was trained without a norm after its last block and has none here: `model.forward_features` returns the tokens as
they were trained, and `model` itself returns the class token."""


def title(config: "PreTrainingConfig", kind: str) -> str:
    ending = {"main": "", "timm": ", for timm", "training": ", to continue training", "classifier": ", fine-tuned"}[kind]
    return f"{config.backbone} by {config.describe()[0]}{ending}"


def summary(config: "PreTrainingConfig", network: str, kind: str) -> str:
    method = config.describe()[1]
    if kind == "training":
        return f"Student, teacher and heads, pre-trained by {method}."
    if kind == "classifier":
        return "A linear classifier on the layer norm of the mean patch token."
    arguments = ", ".join(f"{name}={value}" for name, value in (config.backbone_kwargs or {}).items())
    model = f"timm's `{config.backbone}`" + (f" with {arguments}," if arguments else "")
    library = "timm" if kind == "timm" else "transformers"
    return (
        f"The {network}'s base after pre-training by {method}, without the modules that only training needs: {model} for "
        f"images of {config.image_size} pixels. It is a stock model; no code other than {library} is needed."
    )


def license_reason(facts: dict) -> str:
    return ", the license of the release that they were converted from" if facts["config"].get("license") else ""


def training(manifest: dict) -> list[tuple[str, object]]:
    """Rows of the table about the training run."""
    return [(name, value) for name, row in TRAINING.items() if (value := row(manifest)) is not None]


def parity(facts: dict) -> list[tuple[str, str]]:
    """Outputs of the export and their largest differences from those of the model."""
    return [(name, f"{value:.1e}" if value else "0") for name, value in facts.get("parity", {}).items()]


def limits(facts: dict) -> list[str]:
    config, size = facts["config"], facts["config"]["image_size"]
    texts = [
        f"Trained on images of {size} pixels; other sizes work where the architecture allows them, but were not trained.",
        "Pre-trained without labels: it has no classifier, and inherits the biases of its training images.",
    ]
    if config.get("backbone_kwargs"):
        texts.append(
            "The architecture differs from the standard one of its name, so its results are not comparable with published ones."
        )
    data = facts.get("manifest", {}).get("data", {}).get("path")
    if data and not facts.get("recipe", {}).get("init_from"):
        texts.append(f"Trained on `{data}` only, whose terms of use apply in addition to the license of the weights.")
    return texts


def _estimated(estimate: dict) -> str:
    speed = f"{estimate['images_per_second']:,.1f} images per second"
    return f"{estimate['needed_gib']:.2f} GiB, {speed}, {estimate['hours']:.1f} h"


def _data(data: dict) -> str:
    versions = [f"{name} `{data[name]}`" for name in ("revision", "fingerprint") if data.get(name)]
    return ", ".join([f"`{data['path']}`", f"split {data['split']}", *versions])


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds:.0f} s"
