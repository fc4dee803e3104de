"""How networks are trained: the papers' recipes (SPEC 5) as one table, their fast forms, the sizes of an experiment."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from typing import Any

__all__ = [
    "FAST",
    "PROFILES",
    "RECIPES",
    "Profile",
    "Recipe",
    "RecipeError",
    "Row",
    "changed",
    "epochs_in_words",
    "options_for",
    "recipe_for",
]


class RecipeError(ValueError):
    """A recipe's setting that there is not; the message is one sentence for the user."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: SGD with Nesterov momentum.

    Attributes:
        epochs: passes over the training images.
        batch_size: images a step, over all processes.
        learning_rate: at the start; at the peak of `one-cycle`.
        momentum: Nesterov's.
        schedule: `steps` divides the rate by 10 at each milestone, `plateau` divides it by 5 where the loss on the
            held-out images has not fallen for 5 epochs, down to a tenth of what it was; `one-cycle` raises the rate
            linearly over the first fifth of the steps to `learning_rate` and lowers it linearly to 0.
        milestones: as fractions of the training.
        weight_decay: torch's, on kernels (parameters of two or more axes) alone: 2w for the papers' w * ||W||^2.
        augment: `none`; `shift-flip`: shifts of up to 10 % and horizontal flips; `crop-flip-colour`: random crops,
            flips and changes of colour along the principal components of ImageNet's pixels.
        normalise: what the network's first layer does to images in [0, 1]: `none`; `pixel-mean`: subtract the training
            images' mean, pixel by pixel; `channels`: mean 0 and standard deviation 1 in every channel.
        fresh_statistics: take running statistics of batch norms anew after training, see `norms.py`.
        held_out: the share of the training images that is kept for validation, reshuffled for every run.
        norm_momentum: of the running statistics of batch norms, in torch's sense; 0 for the network's own.
        label: "" for the papers' recipes and the default one, `fast` for their fast forms, whatever else is changed.
    """

    epochs: int = 50
    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    schedule: str = "steps"
    milestones: tuple[float, ...] = (0.5, 0.8)
    weight_decay: float = 0.0
    augment: str = "none"
    normalise: str = "none"
    held_out: float = 0.1
    fresh_statistics: bool = False
    norm_momentum: float = 0.0
    label: str = ""

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise RecipeError(f"{name}={getattr(self, name)!r} is not one of {', '.join(allowed)}.")
        if self.epochs < 1 or self.batch_size < 1 or not 0 <= self.held_out < 1:
            raise RecipeError("A recipe has at least one epoch, batches of at least one image, and 0 <= held_out < 1.")

    def with_batches(self, size: int) -> Recipe:
        """The same with batches of another size. The rate stays as the papers have it; a fast one follows the size."""
        rate = self.learning_rate * size / self.batch_size if self.label == FAST else self.learning_rate
        return replace(self, batch_size=size, learning_rate=rate)


FAST = "fast"

_CHOICES = {
    "schedule": ("steps", "plateau", "one-cycle"),
    "augment": ("none", "shift-flip", "crop-flip-colour"),
    "normalise": ("none", "pixel-mean", "channels"),
    "label": ("", FAST),
}


@dataclass(frozen=True)
class Row:
    """A recipe and what it is for, as shell patterns.

    Attributes:
        data: data sets.
        networks: source networks.
        arrangements: `bu`, `mirror`, `uniform`, `reversed`; `[!b]*` is every top-down network.
        recipe: the recipe.
        options: of `reverse`, where the papers' top-down network is not what it makes by itself.
    """

    data: str
    networks: str
    arrangements: str
    recipe: Recipe
    options: tuple[tuple[str, Any], ...] = ()


_CIFAR = Recipe(epochs=100, weight_decay=2 * 5e-4, normalise="pixel-mean")
_CIFAR_AUGMENTED = replace(_CIFAR, epochs=200, weight_decay=2 * 1e-4, augment="shift-flip")
_IMAGENETTE = Recipe(epochs=50, weight_decay=2 * 1e-3, augment="crop-flip-colour", normalise="pixel-mean")
_IMAGENETTE_TD = replace(_IMAGENETTE, epochs=80, batch_size=64, learning_rate=0.05)

# The first row that fits decides.
RECIPES = (
    Row("mnist", "zoo:lenet_fc", "[!b]*", Recipe(epochs=30)),
    Row("mnist", "*", "*", Recipe(epochs=50)),
    Row("fashion-mnist", "zoo:lenet_fc", "*", Recipe(epochs=40)),
    Row("fashion-mnist", "*", "*", Recipe(epochs=50)),
    Row("cifar10*", "*", "*", _CIFAR),
    Row("cifar10*", "*", "*", _CIFAR_AUGMENTED),
    Row("imagenette", "*", "bu", _IMAGENETTE),
    Row("imagenette", "zoo:resnet18_light", "*", _IMAGENETTE_TD, (("stem", "leading"),)),
    Row("imagenette", "*", "*", _IMAGENETTE_TD),
    Row("imagenet", "*", "*", Recipe(epochs=90, weight_decay=1e-4, augment="crop-flip-colour", normalise="channels")),
    Row("meshes*", "*", "*", Recipe(epochs=20, learning_rate=0.01, schedule="plateau")),
    Row("*", "*", "*", Recipe(normalise="channels")),
)


# Of fast recipes: their epochs by data set, and the peak of the learning rate for each image of a batch.
_FAST_EPOCHS = {"mnist": 5, "fashion-mnist": 10, "cifar10*": 30, "*": 20}
_FAST_RATE = 0.4 / 256


def recipe_for(data: str, network: str, arrangement: str, *, augment: str | None = None, fast: bool = False) -> Recipe:
    """The recipe of the first row that fits.

    Args:
        data: the data set's name.
        network: the source network's name.
        arrangement: `bu`, `mirror`, `uniform` or `reversed`.
        augment: where given, a row with this augmentation is preferred; where none has it, the first row gets it.
        fast: in its fast form: a few epochs of one cycle at a high rate. What is done to images and weights stays.
    """
    fitting = [row.recipe for row in _fitting(data, network, arrangement)]
    if augment is not None:
        fitting = [recipe for recipe in fitting if recipe.augment == augment] or [replace(fitting[0], augment=augment)]
    return _fast(fitting[0], data) if fast else fitting[0]


def _fast(recipe: Recipe, data: str) -> Recipe:
    return replace(
        recipe,
        label=FAST,
        epochs=next(epochs for pattern, epochs in _FAST_EPOCHS.items() if fnmatchcase(data, pattern)),
        schedule="one-cycle",
        learning_rate=_FAST_RATE * recipe.batch_size,
        norm_momentum=0.1,
    )


def options_for(data: str, network: str, arrangement: str) -> tuple[tuple[str, Any], ...]:
    """The options of `reverse` by which the papers' top-down network comes out, of the first row that fits."""
    return next(_fitting(data, network, arrangement)).options


def _fitting(data: str, network: str, arrangement: str) -> Iterator[Row]:
    for row in RECIPES:
        patterns = ((data, row.data), (network, row.networks), (arrangement, row.arrangements))
        if all(fnmatchcase(name, pattern) for name, pattern in patterns):
            yield row


def changed(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """A recipe with settings from the command line in place of its own, such as `batch_size=64` or `milestones=[0.5]`.

    Raises:
        RecipeError: if there is no such setting or the value is of another kind.
    """
    kinds = {field.name: field.default for field in fields(Recipe) if field.name != "label"}
    for setting in sorted(settings, key=lambda setting: not setting.startswith("batch_size=")):  # a rate may follow it
        name, equals, text = setting.partition("=")
        if not equals or name not in kinds:
            raise RecipeError(
                f"{setting!r} is neither {FAST} nor NAME=VALUE of a recipe, whose names are {', '.join(kinds)}."
            )
        value = _parsed(setting, text, type(kinds[name]))
        if name == "batch_size" and value > 0:
            recipe = recipe.with_batches(value)
        recipe = replace(recipe, **{name: value})
    return recipe


def epochs_in_words(count: int) -> str:
    """`1 epoch`, `40 epochs`."""
    return f"{count} epoch{'s' * (count > 1)}"


def _parsed(setting: str, text: str, kind: type) -> Any:
    if kind is str:
        return text
    with contextlib.suppress(TypeError, ValueError):
        value = json.loads(text)
        if list(kind(value)) == value if kind is tuple else kind(value) == value:
            return kind(value)
    raise RecipeError(f"{setting!r}: {text!r} is not {_KINDS[kind]}.")


_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    tuple: "a list of numbers, such as [0.5, 0.8]",
}


@dataclass(frozen=True)
class Profile:
    """The size of an experiment.

    Attributes:
        name: `smoke` (seconds: does it run?), `quick` (minutes on a laptop) or `paper` (the papers' own size).
        runs: how often each training is repeated.
        epochs: in place of the recipe's; None for the recipe's.
        train_images, test_images: how many images at most; None for all.
        batch_size: in place of larger ones of recipes: short trainings need the steps.
        fresh_statistics: as in a recipe. The papers' networks have norms with a momentum of 0.01, whose running
            statistics are right only after hundreds of steps; with fewer, accuracies would tell of nothing else.
    """

    name: str
    runs: int = 4
    epochs: int | None = None
    train_images: int | None = None
    test_images: int | None = None
    batch_size: int | None = None
    fresh_statistics: bool = False

    def fit(self, recipe: Recipe) -> Recipe:
        """The recipe at this size."""
        size = min(recipe.batch_size, self.batch_size or recipe.batch_size)
        return replace(
            recipe.with_batches(size),
            epochs=self.epochs or recipe.epochs,
            fresh_statistics=self.fresh_statistics or recipe.fresh_statistics,
        )


_SHORT = Profile("smoke", runs=1, epochs=1, train_images=1_000, test_images=500, batch_size=32, fresh_statistics=True)

PROFILES = {
    profile.name: profile
    for profile in (
        _SHORT,
        replace(_SHORT, name="quick", runs=2, epochs=2, train_images=4_000, test_images=2_000),
        Profile("paper"),
    )
}
