"""What every process of a verl run is told beside verl's own configuration: the recipe and the run folder.

It travels as `data.vtriune`, the section that reaches dataset, agent loop, reward manager and trainer alike.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtriune.recipe import Recipe

KEY = "vtriune"
"""In verl's section `data`."""
BAN = -100.0
"""Added to a placeholder's logit: the least that sampling engines take; e^-100 of its probability is left."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Of one run."""

    recipe: Recipe
    folder: Path
    """The run folder, absolute; on a cluster it lies where all nodes see it."""
    replace: bool = False
    """Whether an earlier run there is deleted first."""

    def encode(self) -> dict[str, str | bool]:
        """As plain values. The recipe is text: in a mapping OmegaConf would take its `${...}` for references."""
        return {
            "recipe": json.dumps(self.recipe.model_dump(mode="json")),
            "folder": str(self.folder),
            "replace": self.replace,
        }


def settings_of(data_config: Any) -> Settings:
    """From verl's section `data`.

    Raises:
        RuntimeError: it holds none: verl was not started by `vtriune train`.
    """
    held = data_config.get(KEY)
    if held is None:
        raise RuntimeError(f"verl's configuration has no data.{KEY}: start the run with `vtriune train`")
    return Settings(read_recipe(held["recipe"]), Path(held["folder"]), bool(held["replace"]))


def read_recipe(text: str) -> Recipe:
    """A recipe as `Settings.encode` wrote it."""
    return Recipe.model_validate(json.loads(text))
