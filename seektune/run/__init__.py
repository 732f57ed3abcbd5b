"""The parts of a training run: data, model, evaluations, run folder, resume and summary."""
