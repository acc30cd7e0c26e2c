"""The sentences of a card: what a model is, how it is used, what it cannot do, whom to cite."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hssl_hf.models.configuration_base import PreTrainingConfig

FIGURES = {
    "curves.png": "Training: losses, discrepancy or collapse, k-NN.",
    "figures/components.png": "The first three principal components of the patches as red, green and blue.",
    "figures/attention.png": "Attention of the class token in the last block, one map per attention head.",
    "figures/neighbors.png": "Images and their nearest neighbors by cosine similarity.",
    "figures/views.png": "Views of the first images of the training, as the student saw them.",
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
        f"{m['processes']} × {m['hardware']['device']} ({m['hardware']['cores']} cores), engine {m['engine']}"
    ),
    "seed": lambda m: m["seed"],
    "versions": lambda m: ", ".join(f"{name} {version}" for name, version in m["versions"].items()),
    "commit": lambda m: f"`{m['commit']}`" if m["commit"] else None,
}


@dataclass
class Snippets:
    """Code that loads a model; six lines at most.

    Args:
        repository, kind, revision, branches: as in `card.render`.
        facts: of the card.
        model_class: name of the class for pre-training.
    """

    repository: str
    kind: str
    revision: str
    branches: dict[str, str]
    facts: dict
    model_class: str

    def usage(self) -> str:
        where = self._where(self.revision, ', revision="{}"')
        if self.kind == "training":
            name = self.model_class
            branch = self._where(self.branches["training"], ', revision="{}"')
            return f'from hssl_hf import {name}\n\nmodel = {name}.from_pretrained("{self.repository}"{branch})'
        if self.kind == "timm":
            return self.timm()
        auto = "AutoModelForImageClassification" if self.kind == "classifier" else "AutoModel"
        lines = [
            "from PIL import Image",
            f"from transformers import AutoImageProcessor, {auto}",
            "",
            f'processor = AutoImageProcessor.from_pretrained("{self.repository}"{where})',
            f'model = {auto}.from_pretrained("{self.repository}"{where}).eval()',
            'inputs = processor(Image.open("image.png").convert("RGB"), return_tensors="pt")',
        ]
        if self.kind == "classifier":
            return "\n".join([*lines, "label = model(**inputs).logits.argmax(-1)"])
        if not self.facts["without_norm"]:
            return "\n".join([*lines, "features = model(**inputs).pooler_output"])
        hidden = "hidden = model(**inputs, output_hidden_states=True).hidden_states[-1]  # the last block, without a norm"
        mean = "features = torch.nn.functional.layer_norm(hidden[:, 1:].mean(1), hidden.shape[-1:], eps=1e-6)"
        last = [hidden, f"{mean}  # linear probe, fine-tuning", "cls = hidden[:, 0]  # few labels"]
        return "\n".join(["import torch", *lines, *last])

    def timm(self) -> str:
        where = self._where(self.branches["timm"], "@{}")
        return "\n".join([
            "import timm",
            "from PIL import Image",
            "",
            f'model = timm.create_model("hf-hub:{self.repository}{where}", pretrained=True).eval()',
            "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
            'features = model(transform(Image.open("image.png").convert("RGB"))[None])',
        ])  # fmt: skip

    def about(self) -> str:
        if self.kind == "training":
            return "`model.encode(pixels)` gives the tokens of the base model; `hssl-hf export` writes it as a stock model."
        if self.kind == "classifier":
            return "It is a timm model that transformers wraps."
        if not self.facts["without_norm"]:
            return "" if self.kind == "timm" else ABOUT_PLAIN
        return ABOUT_TIMM_WITHOUT_NORM if self.kind == "timm" else ABOUT_WITHOUT_NORM

    def _where(self, branch: str, form: str) -> str:
        return "" if branch == "main" else form.format(branch)


ABOUT_PLAIN = """\
`pooler_output` is the representation of the image; `last_hidden_state` holds those of its patches."""
ABOUT_WITHOUT_NORM = """\
This backbone was trained **without a norm behind its last block**, so its features are `hidden_states[-1]`.
`last_hidden_state` has passed a layer norm that was not there in training: the norm of a mean is not the mean of norms.
For an image take the layer norm of the mean of the patch tokens (linear probe, fine-tuning) or the class token as it
is (few labels)."""
ABOUT_TIMM_WITHOUT_NORM = """\
This backbone was trained without a norm behind its last block and has none here: `model.forward_features` gives the tokens as
they were trained, and the model itself the class token."""


def title(config: "PreTrainingConfig", kind: str) -> str:
    ending = {"main": "", "timm": ", for timm", "training": ", to continue training", "classifier": ", fine-tuned"}[kind]
    return f"{config.backbone} by {config.describe()[0]}{ending}"


def what(config: "PreTrainingConfig", network: str, kind: str) -> str:
    method = config.describe()[1]
    if kind == "training":
        return f"Student, teacher and heads, pre-trained by {method}."
    if kind == "classifier":
        return "The classifier stands on the layer norm of the mean of the patch tokens."
    changed = ", ".join(f"{name}={value}" for name, value in (config.backbone_kwargs or {}).items())
    model = f"timm's `{config.backbone}`" + (f" with {changed}," if changed else "")
    library = "timm" if kind == "timm" else "transformers"
    return (
        f"The {network}'s base after pre-training by {method}, without what only training needs: {model} for images of "
        f"{config.image_size} pixels. It is a stock model; no code beside {library} is needed."
    )


def license_reason(facts: dict) -> str:
    return ": they come from a release under these terms and stay under them" if facts["config"].get("license") else ""


def training(manifest: dict) -> list[tuple[str, object]]:
    """Rows of the table about the training."""
    rows = [(name, value(manifest)) for name, value in TRAINING.items()]
    return [(name, value) for name, value in rows if value is not None]


def parity(facts: dict) -> list[tuple[str, str]]:
    """Outputs of the export and their largest differences from those of the model."""
    return [(name, f"{value:.1e}" if value else "0") for name, value in facts.get("parity", {}).items()]


def limits(facts: dict) -> list[str]:
    config, size = facts["config"], facts["config"]["image_size"]
    found = [
        f"Trained on images of {size} pixels; other sizes work where the architecture allows them, and were not trained.",
        "Pre-trained without labels: it classifies nothing by itself, and carries whatever bias its images have.",
    ]
    if config.get("backbone_kwargs"):
        found.append("The architecture departs from the standard one of its name; its figures compare with nothing published.")
    data = facts.get("manifest", {}).get("data", {}).get("path")
    if data and not facts.get("recipe", {}).get("init_from"):
        found.append(f"It has seen nothing but `{data}`, whose terms apply beside the license of the weights.")
    return found


def _estimated(estimate: dict) -> str:
    return (
        f"{estimate['needed_gib']:.2f} GiB, {estimate['images_per_second']:,.1f} images per second, {estimate['hours']:.1f} h"
    )


def _data(data: dict) -> str:
    parts = [f"`{data['path']}`", f"split {data['split']}"]
    parts += [f"{name} `{data[name]}`" for name in ("revision", "fingerprint") if data.get(name)]
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds:.0f} s"
