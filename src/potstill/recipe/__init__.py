"""Describe a run as data: pydantic models of the YAML.

Each file holds one part of a recipe, and `files.py` finds, reads and explains a recipe file.
Nothing here imports torch, so a mistake in a recipe shows within a second.
"""

from __future__ import annotations

from potstill.recipe import objectives
from potstill.recipe.compression import (
    Export,
    GraphPruning,
    LayerRule,
    MakeStudent,
    Prune,
    Quantize,
    Student,
    StudentFamily,
    TrimVocabulary,
)
from potstill.recipe.config import Config
from potstill.recipe.data import Corpus, DatasetFolder, Files, HubDataset, Masking, Source, TaskData
from potstill.recipe.files import (
    RecipeError,
    checked,
    dump_recipe,
    load_recipe,
    parse_recipe,
    parse_yaml,
    shipped_recipes,
)
from potstill.recipe.measuring import Benchmark, Evaluate, Report, ScoredPairs, TextPass
from potstill.recipe.objectives import *  # noqa: F403
from potstill.recipe.recipe import Recipe, Teacher
from potstill.recipe.stages import (
    Stage,
    lineage,
    main_model,
    plain_twin,
    published_chain,
    repeated,
)
from potstill.recipe.tasks import ENDINGS, Head, Task
from potstill.recipe.training import Distill, Finetune, InBatch, Training, WeightedTeacher

# By file, in the order of the imports.
__all__ = ["Export", "GraphPruning", "LayerRule", "MakeStudent", "Prune", "Quantize", "Student"]
__all__ += ["StudentFamily", "TrimVocabulary"]
__all__ += ["Config"]
__all__ += ["Corpus", "DatasetFolder", "Files", "HubDataset", "Masking", "Source", "TaskData"]
__all__ += ["RecipeError", "checked", "dump_recipe", "load_recipe", "parse_recipe", "parse_yaml"]
__all__ += ["shipped_recipes"]
__all__ += ["Benchmark", "Evaluate", "Report", "ScoredPairs", "TextPass"]
__all__ += objectives.__all__
__all__ += ["Recipe", "Teacher"]
__all__ += ["Stage", "lineage", "main_model", "plain_twin", "published_chain", "repeated"]
__all__ += ["ENDINGS", "Head", "Task"]
__all__ += ["Distill", "Finetune", "InBatch", "Training", "WeightedTeacher"]
