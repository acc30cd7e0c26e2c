"""The recipe of an evaluation: which protocol, on which images, with which settings."""

from dataclasses import dataclass, field
from pathlib import Path

from hssl_hf.config.recipe_files import Protocol
from hssl_hf.config.strict_yaml import RecipeError, build, override, read
from hssl_hf.evaluation.extraction import ExtractionConfig
from hssl_hf.evaluation.features import Representation
from hssl_hf.evaluation.knn import KNNConfig
from hssl_hf.evaluation.label_free import LabelFreeConfig
from hssl_hf.evaluation.linear import LinearConfig
from hssl_hf.evaluation.splits import LabeledData
from hssl_hf.fields import Section


@dataclass(frozen=True)
class EvaluationRecipe(Section):
    """One evaluation of a frozen backbone.

    Args:
        protocol: what is evaluated.
        data: labeled images of two splits.
        representation: which outputs of the backbone stand for an image.
        knn, linear, label_free: settings of the protocols; those of others have no effect.
        extraction: how features are computed; without effect on the figures, but for rounding.
    """

    protocol: Protocol = "knn"
    data: LabeledData = field(default_factory=LabeledData)
    representation: Representation = field(default_factory=Representation)
    knn: KNNConfig = field(default_factory=KNNConfig)
    linear: LinearConfig = field(default_factory=LinearConfig)
    label_free: LabelFreeConfig = field(default_factory=LabelFreeConfig)
    extraction: ExtractionConfig = field(default_factory=ExtractionConfig)


def load_evaluation_recipe(protocol: str | None, path: Path | None, overrides: list[str] = ()) -> EvaluationRecipe:
    """Read the recipe of an evaluation and apply `a.b=c` overrides.

    Args:
        protocol: that the recipe has to be of; None for any.
        path: of the file; None for the defaults of the protocol.
    Raises:
        RecipeError: as `load_recipe`, for a recipe of another protocol, and if no images are named.
    """
    tree = {"protocol": protocol or "knn"} if path is None else read(path)
    for text in overrides:
        override(tree, text)
    recipe = build(EvaluationRecipe, tree)
    if protocol not in (None, recipe.protocol):
        raise RecipeError(
            f"{path} is a recipe of the protocol {recipe.protocol!r}, but {protocol!r} was requested; give a recipe of that"
        )
    if recipe.data.path is None:
        raise RecipeError("name the images to evaluate on, for example data.path=uoft-cs/cifar10")
    return recipe
