"""Names of the files and folders that a training run leaves in its run folder."""

RECIPE = "recipe.yaml"
METRICS = "metrics.jsonl"
VALIDATION = "validation.jsonl"
EVALUATION = "evaluation.json"
EVALUATIONS = "evaluations.jsonl"
SAMPLES = "samples.jsonl"
OWN_ANSWERS = "own_answers.jsonl"
REFERENCE = "reference"
EXPERT_LOADS = "expert_loads.jsonl"
TENSORBOARD = "tensorboard"
TRACKING = "tracking.json"
WANDB = "wandb"
MLFLOW = "mlflow.db"
LOSS_CURVE = "loss.png"
REPORT = "report.html"
REPORT_TEXT = "report.json"
CHECKPOINTS = "checkpoints"
ADAPTER = "adapter"
MODEL = "model"
STUCK = "stuck.txt"
"""Stacks of all threads of a process that was ended because a phase hung."""

CONTENTS = {
    RECIPE: "the recipe as it ran, defaults and overrides included",
    METRICS: "a line per step: loss, gradient norm, learning rate, tokens, speed, memory",
    VALIDATION: "loss on held-out rows before, during and after",
    EVALUATION: "scores of evaluation tasks before and after, with their intervals",
    EVALUATIONS: "scores of evaluation tasks during training",
    SAMPLES: "answers to fixed prompts before, during and after training",
    EXPERT_LOADS: "tokens per expert and layer over the run",
    OWN_ANSWERS: "the model's own answers to training prompts, on which its drafter was trained",
    REFERENCE: "log-probabilities of the reference model, as training began",
    TENSORBOARD: "TensorBoard events",
    TRACKING: "name and id of the run at the trackers of `logging.to`",
    WANDB: "files of Weights & Biases",
    MLFLOW: "an MLflow database, written if `logging.offline`",
    LOSS_CURVE: "the loss curve",
    REPORT_TEXT: "texts of the report, from which `seektune report` writes it again",
    CHECKPOINTS: "training state, to resume from",
    ADAPTER: "the trained adapters in PEFT's form, with the recipe",
    MODEL: "the trained weights: bf16 safetensors under released names, config.json and the tokenizer",
}
"""Description of each file for the report; all but the report itself and `STUCK`."""
