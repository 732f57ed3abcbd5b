"""A second model on the weights of a first: with an adapter beside a plain one, for the memory of the adapter."""

from copy import deepcopy
from itertools import chain

from seektune.model.causal_lm import DeepseekV4ForCausalLM


def twin(model: DeepseekV4ForCausalLM) -> DeepseekV4ForCausalLM:
    """A model whose parameters and buffers are those of another; an adapter that is put on one is not on the other."""
    # what is already in deepcopy's memo is taken, not copied
    return deepcopy(model, {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())})
