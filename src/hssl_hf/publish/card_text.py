"""Texts of a model card: summary, code snippets, figure captions, training."""

import logging
from typing import TYPE_CHECKING

from hssl_hf.modules.backbone import vit_shape
from hssl_hf.publish.licenses import is_non_commercial
from hssl_hf.publish.markdown import code, plain
from hssl_hf.publish.redaction import is_hub_id

if TYPE_CHECKING:
    from hssl_hf.models.configuration_base import PreTrainingConfig
    from hssl_hf.publish.origin import Origin, Release

logger = logging.getLogger(__name__)
FIGURES = {  # path -> caption
    "curves.png": "Training curves: losses, discrepancy or collapse, k-NN accuracy.",
    "figures/components.png": "First three principal components of the patch features as red, green and blue.",
    "figures/attention.png": "Attention of the class token in the last block, one map per head.",
    "figures/neighbors.png": "Test images and their nearest neighbors by cosine similarity.",
    "figures/views.png": "Views of the first training images, as the student received them.",
}
ESTIMATE = "{needed_gib:.2f} GiB, {images_per_second:,.1f} images per second, {hours:.1f} h"
TRAINING = {
    "data": lambda m: _data(m["data"]),
    "images seen": lambda m: f"{m['images_seen']:,}" if "images_seen" in m else None,
    "steps": lambda m: f"{m['steps']:,}" if "steps" in m else None,
    "undecodable images": lambda m: m.get("undecodable") or None,
    "wall time": lambda m: _duration(m["seconds"]) if "seconds" in m else None,
    "estimated": lambda m: ESTIMATE.format(**m["estimate"]) if m.get("estimate") else None,
    "images per second": lambda m: f"{m['images_per_second']:,.1f}" if "images_per_second" in m else None,
    "peak memory per process": lambda m: f"{m['peak_memory_gib']:.2f} GiB" if "peak_memory_gib" in m else None,
    "hardware": lambda m: plain("{processes} × {hardware[device]} ({hardware[cores]} cores), strategy {engine}".format(**m)),
    "seed": lambda m: m["seed"],
    "versions": lambda m: plain(", ".join(f"{name} {version}" for name, version in m["versions"].items())),
    "commit": lambda m: code(m["commit"], in_table=True) if m["commit"] else None,
}


IMAGE = {channels: f'Image.open("image.png").convert("{mode}")' for channels, mode in ((1, "L"), (3, "RGB"))}
BANDS = 'Image.open("image.png")'
ONNX = """\
import onnxruntime
from huggingface_hub import snapshot_download
from PIL import Image
from transformers import AutoImageProcessor

processor = AutoImageProcessor.from_pretrained({source})
pixels = processor({image}, return_tensors="pt")["pixel_values"].numpy()
session = onnxruntime.InferenceSession(snapshot_download({source}, allow_patterns="onnx/*") + "/onnx/model.onnx")
{features}"""
ONNX_FEATURES = '(features,) = session.run(["pooler_output"], {"pixel_values": pixels})'
ONNX_FEATURES_WITHOUT_NORM = """\
(hidden,) = session.run(["{tokens}"], {{"pixel_values": pixels}})  # of the last block, without norm
mean = hidden[:, 1:].mean(1)
features = (mean - mean.mean(1, keepdims=True)) / (mean.var(1, keepdims=True) + 1e-6) ** 0.5  # linear probe, fine-tuning
cls = hidden[:, 0]  # few labels"""
FEATURES_WITHOUT_NORM = """\
hidden = {tokens}  # of the last block, without norm
features = torch.nn.functional.layer_norm(hidden[:, 1:].mean(1), hidden.shape[-1:], eps=1e-6)  # linear probe, fine-tuning
cls = hidden[:, 0]  # few labels"""
DETECTOR = """\
from transformers import DetrConfig, DetrForObjectDetection

detector = DetrForObjectDetection(DetrConfig(backbone_config=backbone.config, num_labels=91))
detector.model.backbone.model.load_state_dict(backbone.state_dict())"""
NORMALIZED = "The map of the last stage goes through the trained norm, the maps of the others through one without parameters."
FEATURE_MAPS = {  # by the class in transformers
    "Dinov2Backbone": """\
It is the same ViT, with layer scales of 1 if it was trained without any. All maps have the stride of the patches;
`out_features` chooses the blocks, `apply_layernorm` whether their maps go through the final norm.""",
    "ConvNextBackbone": NORMALIZED,
    "ResNetBackbone": """\
The maps are those of the four stages. Inside a DETR transformers freezes a ResNet; `detector.model.unfreeze_backbone()` undoes
it.""",
    "SwinBackbone": NORMALIZED,
}
BY_CLASS = """\
`AutoModel` would build another model from this branch, partly with new weights; for the features of an image load the stock
model."""
ABOUT = {
    "main": "`pooler_output` is the representation of the image; `last_hidden_state` contains those of its patches.",
    "timm": "",
    "backbone": BY_CLASS,
    "training": """\
`model.encode(pixels)` returns the tokens of the base. The class is in the Python package `hssl-hf` (`pip install hssl-hf`),
whose command `hssl-hf pretrain recipe.yaml init_from=...` continues the training.""",
    "classifier": "It is a timm model in transformers' `TimmWrapperForImageClassification`.",
}
USE_WITHOUT_NORM = """\
As features of an image use the layer norm of the mean patch token (linear probe, fine-tuning) or the class token without
norm (few labels)."""
ABOUT_WITHOUT_NORM = {
    "main": f"""\
This backbone was trained **without a norm after its last block**, so its features are `hidden_states[-1]`.
`last_hidden_state` is the output of a layer norm that was absent in training: the norm of a mean is not the mean of norms.
{USE_WITHOUT_NORM}""",
    "timm": """\
This backbone was trained without a norm after its last block and has none here: `model.forward_features` returns the tokens as
they were trained, and `model` itself returns the class token.""",
    "backbone": f"""\
This backbone was trained **without a norm after its last block**, so no map goes through a norm (`apply_layernorm=False`).
{BY_CLASS}""",
}


def about(kind: str, facts: dict) -> str:
    """What the code of `usage` returns."""
    text = (ABOUT | ABOUT_WITHOUT_NORM if facts["without_norm"] else ABOUT)[kind]
    if kind == "main" and facts["without_norm"] and _tokens(facts) != "hidden_states":
        text = f"This backbone was trained without a norm after its last block and has none here. {USE_WITHOUT_NORM}"
    return f"{FEATURE_MAPS[facts['backbone_class']]}\n{text}" if kind == "backbone" else text


def usage(kind: str, facts: dict, repository: str, branch: str, model_class: str, channels: int = 3) -> str:
    """Code that loads a model and computes features; `model_class` is that for pre-training in this package."""
    if kind == "timm":
        return timm_usage(repository, branch, channels)
    source = _source(repository, branch)
    if kind == "training":
        return f"from hssl_hf import {model_class}\n\nmodel = {model_class}.from_pretrained({source})"
    auto, features = "AutoModel", "features = model(**inputs).pooler_output"
    if kind == "classifier":
        auto, features = "AutoModelForImageClassification", "label = model(**inputs).logits.argmax(-1)"
    elif kind == "backbone":
        auto, features = facts["backbone_class"], "maps = model(**inputs).feature_maps"
    elif facts["without_norm"]:
        call = "model(**inputs).last_hidden_state"
        if _tokens(facts) == "hidden_states":
            call = "model(**inputs, output_hidden_states=True).hidden_states[-1]"
        features = FEATURES_WITHOUT_NORM.format(tokens=call)
    code = f"""\
from PIL import Image
from transformers import AutoImageProcessor, {auto}

processor = AutoImageProcessor.from_pretrained({source})
model = {auto}.from_pretrained({source}).eval()
inputs = processor({IMAGE.get(channels, BANDS)}, return_tensors="pt")
{features}"""
    return f"import torch\n{code}" if "torch." in features else code


def onnx_usage(kind: str, facts: dict, repository: str, branch: str, channels: int = 3) -> str:
    """Code that computes the features of `usage` by onnxruntime."""
    features = ONNX_FEATURES
    if kind == "main" and facts["without_norm"]:
        features = ONNX_FEATURES_WITHOUT_NORM.format(tokens=_tokens(facts))
    return ONNX.format(source=_source(repository, branch), image=IMAGE.get(channels, BANDS), features=features)


def _tokens(facts: dict) -> str:
    """The output of the stock model that holds the tokens of a backbone without final norm."""
    return facts.get("tokens", "hidden_states")


def timm_usage(repository: str, branch: str, channels: int = 3) -> str:
    revision = "" if branch == "main" else f"@{branch}"
    if channels not in IMAGE:
        return f"""\
import timm

model = timm.create_model("hf-hub:{repository}{revision}", pretrained=True).eval()
features = model(pixels)  # (B, {channels}, H, W) normalized; timm's transforms are for RGB and gray images"""
    return f"""\
import timm
from PIL import Image

model = timm.create_model("hf-hub:{repository}{revision}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
features = model(transform({IMAGE[channels]})[None])"""


def segmentation_usage(facts: dict, repository: str, branches: dict[str, str]) -> str:
    """Code that puts the weights into a model for segmentation; the maps alone where transformers has no class for them."""
    name = facts.get("backbone_class")
    if name is None:
        source = f"hf-hub:{repository}@{branches['timm']}"
        return f'import timm\n\nbackbone = timm.create_model("{source}", pretrained=True, features_only=True)'
    return f"""\
from transformers import {name}, UperNetConfig, UperNetForSemanticSegmentation

backbone = {name}.from_pretrained({_source(repository, branches["backbone"])})
model = UperNetForSemanticSegmentation(UperNetConfig(backbone_config=backbone.config, num_labels=150))
model.backbone.load_state_dict(backbone.state_dict())"""


def title(config: "PreTrainingConfig", kind: str, method: str | None = None) -> str:
    """Architecture with its real size, and the method: that of a converted checkpoint, or that of the configuration."""
    endings = {"timm": ", for timm", "backbone": ", for feature maps", "training": ", to continue training"}
    endings |= {"main": "", "classifier": ", fine-tuned"}
    return f"{_architecture(config)} by {plain(method) if method else config.describe()[0]}{endings[kind]}"


def _architecture(config: "PreTrainingConfig") -> str:
    """The real size of a vision transformer, whatever the name of its timm model is; of another model name and arguments."""
    kwargs = config.backbone_kwargs or {}
    try:
        shape = vit_shape(config.backbone, config.image_size, kwargs)
    except ValueError:  # of a version of timm that does not have this model
        shape = None
    if shape is None:
        return plain(config.backbone) + (f" with {_arguments(kwargs)}" if kwargs else "")
    width, depth, patch = shape
    size = f"{patch[0]}" if patch[0] == patch[1] else f"{patch[0]} × {patch[1]}"
    return f"ViT of width {width}, depth {depth} and patch size {size}"


def _arguments(kwargs: dict) -> str:
    return plain(", ".join(f"{name}={value}" for name, value in kwargs.items()))


def summary(config: "PreTrainingConfig", network: str, kind: str, method: str | None = None) -> str:
    method = plain(method) if method else config.describe()[1]
    if kind == "training":
        return f"Student, teacher and heads, pre-trained by {method}."
    if kind == "classifier":
        return "A linear classifier on the layer norm of the mean patch token."
    kwargs = config.backbone_kwargs or {}
    model = f"timm's {code(config.backbone)}" + (f" with {_arguments(kwargs)}," if kwargs else "")
    library = "timm" if kind == "timm" else "transformers"
    return (
        f"The {network}'s base after pre-training by {method}, without the modules that only training needs: {model} for "
        f"images of {config.image_size} pixels. It is a stock model; no code other than {library} is needed."
    )


def provenance(release: "Release | None", origin: "Origin | None", license: str | None) -> str:
    """Where the weights come from, and under which license they are, in sentences."""
    sentences = []
    if release:
        file = f" from the file {code(release.file)}" if release.file else ""
        sentences.append(f"The weights were converted{file}: {_checkpoint(release)}.")
    if origin:
        commit = f" at commit {code(origin.commit)}" if origin.commit else ""
        converted = f", converted from {_checkpoint(origin.release)}" if origin.release else ""
        terms = "whose license is **unknown**: find out what it allows before using or publishing these weights"
        if origin.license:
            use = ", not for commercial use" if is_non_commercial(origin.license, origin.license_name) else ""
            terms = f"under {_license(origin.license, origin)}{use}"
        sentences.append(f"The training started from the weights of {code(origin.name)}{commit}{converted}, {terms}.")
    if license:
        released = f", as is the release of {plain(release.method)}" if release else ""
        sentences.append(f"The weights are under {_license(license, origin)}{released}.")
        if is_non_commercial(license, origin.license_name if origin and license == "other" else None):
            sentences.append("**They are not for commercial use.**")
    return " ".join(sentences)


def _checkpoint(release: "Release") -> str:
    evidence = "as the layout of the file suggests" if release.detected else "as it was named for the conversion"
    return f"a checkpoint of {plain(release.method)}, {evidence}"


def _license(name: str, origin: "Origin | None") -> str:
    """The name of a license; of one that the Hub lists as "other" also its own name and link."""
    details = [origin.license_name, origin.license_link] if origin and name == "other" else []
    return code(name) + (f" ({', '.join(code(text) for text in details if text)})" if any(details) else "")


def shortened(recipe: dict) -> list[str]:
    """Keys of a recipe whose paths others cannot read as they are: not on the Hub, and cut to what may be public."""
    data = recipe.get("data", {})
    paths = {"init_from": recipe.get("init_from")} | {f"data.{name}": data.get(name) for name in ("path", "classes")}
    return [code(key) for key, path in paths.items() if path is not None and not is_hub_id(str(path).partition("@")[0])]


def training(manifest: dict) -> list[tuple[str, object]]:
    """Rows of the table about the training run; what a damaged manifest lacks is left out, with a warning."""
    rows, lost = {}, []
    for name, row in TRAINING.items():
        try:
            rows[name] = row(manifest)
        except (LookupError, TypeError, ValueError, AttributeError):
            lost.append(name)
    if lost:
        logger.warning("the manifest of the run is damaged; rows of its table are left out: %s", ", ".join(lost))
    return [(name, value) for name, value in rows.items() if value is not None]


def parity(facts: dict) -> list[tuple[str, str]]:
    """Outputs of the export and their largest differences from those of the model."""
    return [(name, f"{value:.1e}" if value else "0") for name, value in facts.get("parity", {}).items()]


def _source(repository: str, branch: str) -> str:
    return f'"{repository}"' if branch == "main" else f'"{repository}", revision="{branch}"'


def _data(data: dict) -> str:
    versions = [f"{name} {code(data[name], in_table=True)}" for name in ("revision", "fingerprint") if data.get(name)]
    return ", ".join([code(data["path"], in_table=True), f"split {plain(data['split'])}", *versions])


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds:.0f} s"
