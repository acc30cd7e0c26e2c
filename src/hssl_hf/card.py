"""The card beside the weights: what they are, how their features are read, and whose terms they are under."""

from huggingface_hub import ModelCardData
from transformers import PreTrainedConfig

LOADED = """\
from transformers import AutoImageProcessor, {auto}

processor = AutoImageProcessor.from_pretrained("{repository}")
model = {auto}.from_pretrained("{repository}").eval()
inputs = processor(Image.open("image.png").convert("RGB"), return_tensors="pt")"""

PLAIN = """\
features = model(**inputs).pooler_output"""

WITHOUT_NORM = """\
hidden = model(**inputs, output_hidden_states=True).hidden_states[-1]  # the last block, without a norm
features = torch.nn.functional.layer_norm(hidden[:, 1:].mean(1), hidden.shape[-1:], eps=1e-6)  # linear probe, fine-tuning
cls = hidden[:, 0]  # few labels"""

ABOUT_PLAIN = """\
`pooler_output` is the representation of the image; `last_hidden_state` holds those of its patches."""

ABOUT_WITHOUT_NORM = """\
This backbone was trained **without a norm behind its last block**, so its features are `hidden_states[-1]`.
`last_hidden_state` has passed a layer norm that was not there in training: the norm of a mean is not the mean of norms.
For a whole image take the layer norm of the mean of the patch tokens (linear probe, fine-tuning) or the class token as it
is (few labels)."""


def backbone_card(config: PreTrainedConfig, network: str, *, without_norm: bool, repository: str = "user/name") -> str:
    """Markdown for the README.md of an exported backbone.

    Args:
        config: of the model that was trained.
        network: "teacher" or "student", which of the two was exported.
        without_norm: the features are those in front of the stock model's final norm.
        repository: name that the snippet loads.
    """
    imports = "import torch\nfrom PIL import Image\n" if without_norm else "from PIL import Image\n"
    usage = LOADED.format(auto="AutoModel", repository=repository) + "\n" + (WITHOUT_NORM if without_norm else PLAIN)
    return _card(
        f"{config.backbone} by {name_method(config)[0]}",
        f"The {network}'s base after pre-training by {name_method(config)[1]}, without what only training needs: timm's "
        f"`{config.backbone}`{_arguments(config)} for images of {config.image_size} pixels. It is a stock model; no code "
        "beside transformers is needed.",
        imports + usage,
        ABOUT_WITHOUT_NORM if without_norm else ABOUT_PLAIN,
        ModelCardData(
            library_name="transformers", pipeline_tag="image-feature-extraction", license=_license(config), tags=_tags(config)
        ),
    )


def pretraining_card(config: PreTrainedConfig, repository: str = "user/name") -> str:
    """Markdown for a whole model, from which training can go on."""
    name = {"hssl": "HSSLForPreTraining", "siamese_im": "SiameseIMForPreTraining"}[config.model_type]
    return _card(
        f"{config.backbone} by {name_method(config)[0]}, to go on with",
        f"Student, teacher and heads, pre-trained by {name_method(config)[1]}.",
        f'from hssl_hf import {name}\n\nmodel = {name}.from_pretrained("{repository}")',
        "`model.encode(pixels)` gives the tokens of the base model; `hssl_hf.export_backbone` writes it as a stock model.",
        ModelCardData(library_name="hssl_hf", license=_license(config), tags=_tags(config)),
    )


def classifier_card(config: PreTrainedConfig, repository: str = "user/name") -> str:
    """Markdown for a fine-tuned classifier."""
    usage = LOADED.format(auto="AutoModelForImageClassification", repository=repository)
    return _card(
        f"{config.backbone} by {name_method(config)[0]}, fine-tuned",
        "The classifier stands on the layer norm of the mean of the patch tokens.",
        f"from PIL import Image\n{usage}\nlabel = model(**inputs).logits.argmax(-1)",
        "It is a timm model that transformers wraps.",
        ModelCardData(
            library_name="transformers", pipeline_tag="image-classification", license=_license(config), tags=_tags(config)
        ),
    )


def name_method(config: PreTrainedConfig) -> tuple[str, str]:
    """What a configuration amounts to: a short name, and one with what it consists of."""
    if config.model_type == "hssl":
        if config.auxiliary is None:
            return config.objective, f"{config.objective} alone, without an auxiliary head"
        return "HSSL", f"heterogeneous self-supervised learning: {config.objective} with a {config.auxiliary} head"
    if config.target == "pixel" and config.views == "same":
        return "MAE", "masked autoencoding (MAE, arXiv 2111.06377)"
    if (config.target, config.views, config.level) == ("feature", "different", "dense"):
        return "SiameseIM", "siamese image modeling (SiameseIM, arXiv 2206.01204)"
    variant = f"target: {config.target}, views: {config.views}, level: {config.level}"
    return "a variant of SiameseIM", f"a variant of siamese image modeling (SiameseIM, arXiv 2206.01204; {variant})"


def _card(title: str, what: str, usage: str, about: str, data: ModelCardData) -> str:
    terms = f"\nThe weights come from a release under `{data.license}` and stay under it.\n" if data.license else ""
    return f"---\n{data.to_yaml()}\n---\n\n# {title}\n\n{what}\n\n```python\n{usage}\n```\n\n{about}\n{terms}"


def _arguments(config: PreTrainedConfig) -> str:
    changed = ", ".join(f"{name}={value}" for name, value in (config.backbone_kwargs or {}).items())
    return f" with {changed}," if changed else ""


def _license(config: PreTrainedConfig) -> str | None:
    return getattr(config, "license", None)


def _tags(config: PreTrainedConfig) -> list[str]:
    return ["self-supervised-learning", "vision", config.model_type.replace("_", "-")]
