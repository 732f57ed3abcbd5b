"""FLOPs of drafts compared with torch's counter, forward and backward."""

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.draft_flops import draft_flops
from seektune.model.dspark import LayerMeans
from seektune.model.dspark_loss import Drafting, DraftLosses, DraftRows, choose_anchors, draft_losses
from seektune.model.transformer import TokenRows
from seektune.sequence import SequenceLayout
from tests.conftest import DSPARK

TOKENS = 90


@pytest.fixture(scope="module")
def model(toy_model) -> DeepseekV4ForCausalLM:
    """Frozen but for its stages, as in training."""
    found: DeepseekV4ForCausalLM = toy_model(torch.float32, drafter=True, **DSPARK)
    for name, parameter in found.named_parameters():
        parameter.requires_grad_(name.startswith("mtp."))
    return found


def counted(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def losses_of(model: DeepseekV4ForCausalLM, anchors: int) -> Callable[[], DraftLosses]:
    tokens = torch.randint(64, (1, TOKENS), generator=torch.Generator().manual_seed(3))
    rows = TokenRows(tokens, SequenceLayout.single(1, TOKENS))
    with torch.no_grad():
        means = LayerMeans(model.config.dspark_target_layer_ids or ())
        hidden = model.hidden(model.backbone(rows, means=means).streams_BTSD)
    text = DraftRows(tokens, tokens, rows.layout, means.joined(), hidden)
    chosen = choose_anchors(rows.layout, tokens, anchors, seed=1)
    drafting = Drafting(list(model.mtp), model.embed, model.head.values(), model.config, text)
    return lambda: draft_losses(drafting, chosen, divisor=1.0)


@pytest.mark.parametrize("anchors", [7, 40])
def test_forward_is_counted_exactly(model: DeepseekV4ForCausalLM, anchors: int) -> None:
    """The weighted sum of the last read is no matrix product for torch."""
    config = model.config
    expected = draft_flops(config, TOKENS, anchors)
    read = 2 * anchors * config.dspark_block_size * config.hc_mult * config.hidden_size
    assert counted(losses_of(model, anchors)) == sum(expected.forward.values()) - read


@pytest.mark.slow
@pytest.mark.parametrize("anchors", [7, 40])
def test_backward_has_few_gradients_less(model: DeepseekV4ForCausalLM, anchors: int) -> None:
    """The streams of the first stage begin as frozen embeddings, and some gradients are no matrix products."""
    expected = draft_flops(model.config, TOKENS, anchors)
    losses = losses_of(model, anchors)().loss
    found = counted(losses.backward)
    wanted = sum(expected.backward.values())
    assert 0.97 * wanted < found <= wanted
    model.zero_grad(set_to_none=True)
