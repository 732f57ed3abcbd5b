"""Models whose drafters are sometimes right: their blocks change little beyond a token's own embedding."""

import torch

from seektune.model.causal_lm import DeepseekV4ForCausalLM


@torch.no_grad()
def sometimes_right(model: DeepseekV4ForCausalLM) -> DeepseekV4ForCausalLM:
    """The model, with other weights; it has an MTP block, or DSpark stages with a Markov head as wide as the model."""
    for name, x in model.named_parameters():
        if name.endswith(("wo_b.weight", "w2", "w2.weight")):
            x.mul_(0.15)
    model.norm.weight.fill_(1.0)
    if model.config.dspark_stages:
        # the Markov head says what an embedding says to the output head
        model.mtp[-1].markov_head.markov_w1.weight.copy_(model.embed.weight)
        model.mtp[-1].markov_head.markov_w2.weight.copy_(model.head.weight)
        model.mtp[-1].norm.weight.fill_(0.05)
        return model
    model.mtp[0].e_proj.weight.copy_(torch.eye(model.config.hidden_size))
    model.mtp[0].h_proj.weight.zero_()
    for norm in (model.mtp[0].enorm, model.mtp[0].norm):
        norm.weight.fill_(1.0)
    return model
