"""One training run from its recipe to what it leaves: data, model, evaluations, folder, resume and summary."""
