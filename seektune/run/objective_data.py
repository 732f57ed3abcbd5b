"""Which kinds of data an objective can learn from."""

from seektune.data.datasets.row_texts import WrittenConfig
from seektune.recipe.recipe import Recipe
from seektune.run.streams import streamed


def check_objective_data(recipe: Recipe) -> None:
    """Check that the objective, its reference and the kinds of data fit each other.

    Raises:
        ValueError: they do not.
    """
    name = recipe.objective.name
    for dataset in recipe.datasets:
        if dataset.labelled and name != "kto":
            raise ValueError(f"data.kind {dataset.kind} needs objective.name kto, not {name}")
        if dataset.paired and not (recipe.objective.compares or recipe.objective.samples):
            raise ValueError(
                f"data.kind {dataset.kind} needs an objective that compares two responses, not objective.name {name}; "
                "set --objective.name=dpo, or data.kind chat to teach one response"
            )
        if recipe.objective.compares and not (dataset.paired or dataset.labelled):
            other = " or feedback" if name == "kto" else ""
            raise ValueError(f"objective.name {name} needs data.kind preference{other}, not {dataset.kind}")
        unweighted = recipe.objective.compares or recipe.objective.samples
        if unweighted and isinstance(dataset, WrittenConfig) and dataset.weight_column is not None:
            counted = "pair" if recipe.objective.compares else "answer"
            raise ValueError(f"data.weight_column must be null: objective.name {name} counts each {counted} once")
        if recipe.objective.samples and dataset.kind not in ("chat", "prompt_completion"):
            raise ValueError(f"objective.name {name} needs data.kind chat or prompt_completion, not {dataset.kind}")
    if (recipe.objective.compares or recipe.objective.samples) and streamed(recipe.datasets):
        raise ValueError(f"objective.name {name} needs prepared rows; set data.stream to false")
    if recipe.switches_adapters_off and not recipe.lora.targets:
        raise ValueError("objective.reference adapters_off needs lora.targets; set it to cached")
