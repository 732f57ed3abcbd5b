"""What a DSpark draft is, written from its formulas: one query at a time, from a whole text, without any cache."""

import math

import torch
from torch import Tensor

from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.sequence import SequenceLayout


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


def rotated(x: Tensor, position: int, dim: int, theta: float, sign: int = 1) -> Tensor:
    """The last `dim` columns as complex pairs, turned by the position; plain RoPE."""
    x = x.clone()
    for pair in range(dim // 2):
        # angles are fp32 everywhere
        frequency = torch.tensor(theta, dtype=torch.float32) ** (torch.tensor(2 * pair, dtype=torch.float32) / dim)
        angle = sign * position * (1.0 / frequency)
        cos, sin = float(angle.cos()), float(angle.sin())
        real, imaginary = x.shape[-1] - dim + 2 * pair, x.shape[-1] - dim + 2 * pair + 1
        a, b = x[..., real].clone(), x[..., imaginary].clone()
        x[..., real], x[..., imaginary] = a * cos - b * sin, a * sin + b * cos
    return x


def captured(model: DeepseekV4ForCausalLM, text: list[int]) -> Tensor:
    """`c[t]`: means over the streams after the target layers, side by side, `[T, M * D]`."""
    outputs: dict[int, Tensor] = {}
    targets = model.config.dspark_target_layer_ids
    handles = [
        model.layers[layer].register_forward_hook(lambda _m, _i, out, layer=layer: outputs.update({layer: out[0]}))
        for layer in targets
    ]
    model(torch.tensor([text]))
    for handle in handles:
        handle.remove()
    return torch.cat([sum(outputs[layer].unbind(1)) / model.config.hc_mult for layer in targets], dim=-1)


@torch.no_grad()
def draft(model: DeepseekV4ForCausalLM, text: list[int]) -> tuple[Tensor, Tensor]:
    """Logits without the Markov head `[A, V]` and hidden states `[A, D]` of the draft after a text."""
    c = model.config
    *before, anchor = text
    position = len(before)
    first, last = model.mtp[0], model.mtp[-1]
    memory = torch.zeros(0, c.hidden_size, dtype=torch.float64)
    if before:
        projected = captured(model, before) @ first.main_proj.weight.T
        memory = rms(projected, first.main_norm.weight, c.rms_norm_eps)
    ids = [anchor] + [c.dspark_noise_token_id] * (c.dspark_block_size - 1)
    streams = model.embed.weight[ids][:, None].repeat(1, c.hc_mult, 1)[None]
    for stage in model.mtp:
        attn = stage.attn

        def key(x: Tensor, at: int, attn=attn) -> Tensor:
            made = rms(attn.wkv.weight @ x, attn.kv_norm.weight, c.rms_norm_eps)
            return rotated(made, at, c.qk_rope_head_dim, c.rope_theta)

        def attention(x_1AD: Tensor, stage=stage, attn=attn, key=key) -> Tensor:
            x_AD = rms(x_1AD[0], stage.attn_norm.weight, c.rms_norm_eps)
            old = [key(memory[t], t) for t in range(max(position - c.sliding_window, 0), position)]
            keys = torch.stack([*old, *(key(x, position + i) for i, x in enumerate(x_AD))])
            out = []
            for i, x in enumerate(x_AD):
                latent = rms(attn.wq_a.weight @ x, attn.q_norm.weight, c.rms_norm_eps)
                q_HC = (attn.wq_b.weight @ latent).view(c.num_attention_heads, c.head_dim)
                q_HC = rms(q_HC, torch.ones(c.head_dim), c.rms_norm_eps)
                q_HC = rotated(q_HC, position + i, c.qk_rope_head_dim, c.rope_theta)
                scores = q_HC @ keys.T / math.sqrt(c.head_dim)
                weights = scores.exp() / (scores.exp().sum(-1, keepdim=True) + attn.attn_sink.exp()[:, None])
                o_HC = rotated(weights @ keys, position + i, c.qk_rope_head_dim, c.rope_theta, sign=-1)
                groups = o_HC.reshape(c.o_groups, -1)
                low = attn.wo_a.weight.view(c.o_groups, c.o_lora_rank, -1)
                out.append(attn.wo_b.weight @ torch.cat([low[g] @ groups[g] for g in range(c.o_groups)]))
            return torch.stack(out)[None]

        # hyper-connections and experts are those of every block
        layout = SequenceLayout.single(1, c.dspark_block_size)
        streams = stage.hc_attn(streams, attention)
        streams = stage.hc_ffn(streams, lambda x, s=stage, rows=layout: s.ffn(s.ffn_norm(x), None, rows, None))
    hidden = last.hc_head(streams)[0]
    return rms(hidden, last.norm.weight, c.rms_norm_eps) @ model.head.weight.T, hidden


def slot_logits(model: DeepseekV4ForCausalLM, unary_AV: Tensor, slot: int, previous: int) -> Tensor:
    """Logits of one slot, `[V]`."""
    head = model.mtp[-1].markov_head
    return unary_AV[slot] + head.markov_w2.weight @ head.markov_w1.weight[previous]


@torch.no_grad()
def confidence(model: DeepseekV4ForCausalLM, hidden_AD: Tensor, slot: int, previous: int) -> float:
    """Chance that the proposal of a slot is accepted."""
    last = model.mtp[-1]
    row = torch.cat([hidden_AD[slot], last.markov_head.markov_w1.weight[previous]])
    return (last.confidence_head.proj.weight[0] @ row).sigmoid().item()
