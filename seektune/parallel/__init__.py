"""One device into many: how a model is spread over processes, applied to it from outside."""
