"""What published configs say of models' sizes, and which tensors of GGUF that makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from gguf import ExpertGatingFuncType, GGUFWriter

Sizes = dict[str, tuple[int, ...]]


class Shape(Protocol):
    """A model's sizes.

    Attributes:
        source: where the numbers are from.
        architecture: GGUF's general.architecture.
    """

    @property
    def source(self) -> str: ...
    @property
    def architecture(self) -> str: ...
    @property
    def layers(self) -> int: ...
    @property
    def hidden(self) -> int: ...
    @property
    def vocabulary(self) -> int: ...
    @property
    def context(self) -> int: ...

    def describe(self, writer: GGUFWriter) -> None:
        """Write the metadata that is its own."""

    def matrices(self) -> Sizes:
        """name -> [rows, columns], or a stack of them."""

    def routers(self) -> Sizes:
        """The same of matrices that are kept in float32."""

    def vectors(self) -> dict[str, int]:
        """name -> size."""


@dataclass(frozen=True)
class DenseShape:
    """Grouped-query attention and a gated feed-forward network in every layer."""

    source: str
    architecture: str
    layers: int
    hidden: int
    feed_forward: int
    heads: int
    key_value_heads: int
    head_size: int
    vocabulary: int
    rope_base: float
    tied: bool
    biases: bool
    context: int = 32768

    def describe(self, writer: GGUFWriter) -> None:
        writer.add_feed_forward_length(self.feed_forward)
        writer.add_head_count(self.heads)
        writer.add_head_count_kv(self.key_value_heads)
        writer.add_key_length(self.head_size)
        writer.add_value_length(self.head_size)
        writer.add_rope_dimension_count(self.head_size)
        writer.add_rope_freq_base(self.rope_base)

    def matrices(self) -> Sizes:
        query, key_value = self.heads * self.head_size, self.key_value_heads * self.head_size
        found: Sizes = {"token_embd.weight": (self.vocabulary, self.hidden)}
        if not self.tied:
            found["output.weight"] = (self.vocabulary, self.hidden)
        for layer in range(self.layers):
            block = f"blk.{layer}."
            found |= {
                f"{block}attn_q.weight": (query, self.hidden),
                f"{block}attn_k.weight": (key_value, self.hidden),
                f"{block}attn_v.weight": (key_value, self.hidden),
                f"{block}attn_output.weight": (self.hidden, query),
                f"{block}ffn_gate.weight": (self.feed_forward, self.hidden),
                f"{block}ffn_up.weight": (self.feed_forward, self.hidden),
                f"{block}ffn_down.weight": (self.hidden, self.feed_forward),
            }
        return found

    def routers(self) -> Sizes:
        return {}

    def vectors(self) -> dict[str, int]:
        key_value = self.key_value_heads * self.head_size
        found = {"output_norm.weight": self.hidden}
        for layer in range(self.layers):
            block = f"blk.{layer}."
            found |= {
                f"{block}attn_norm.weight": self.hidden,
                f"{block}ffn_norm.weight": self.hidden,
            }
            if self.biases:
                found |= {
                    f"{block}attn_q.bias": self.heads * self.head_size,
                    f"{block}attn_k.bias": key_value,
                    f"{block}attn_v.bias": key_value,
                }
        return found


@dataclass(frozen=True)
class LatentShape:
    """Latent attention without a low-rank query, and experts behind the first layers."""

    source: str
    architecture: str
    layers: int
    dense_layers: int
    hidden: int
    feed_forward: int
    heads: int
    latent: int
    plain: int
    turned: int
    value: int
    experts: int
    experts_used: int
    expert_width: int
    shared_experts: int
    vocabulary: int
    rope_base: float
    context: int = 32768

    def describe(self, writer: GGUFWriter) -> None:
        writer.add_feed_forward_length(self.feed_forward)
        writer.add_head_count(self.heads)
        writer.add_head_count_kv(1)
        writer.add_kv_lora_rank(self.latent)
        writer.add_key_length(self.latent + self.turned)
        writer.add_value_length(self.latent)
        writer.add_key_length_mla(self.plain + self.turned)
        writer.add_value_length_mla(self.value)
        writer.add_rope_dimension_count(self.turned)
        writer.add_rope_freq_base(self.rope_base)
        writer.add_leading_dense_block_count(self.dense_layers)
        writer.add_expert_count(self.experts)
        writer.add_expert_used_count(self.experts_used)
        writer.add_expert_shared_count(self.shared_experts)
        writer.add_expert_feed_forward_length(self.expert_width)
        writer.add_expert_weights_scale(1.0)
        writer.add_expert_gating_func(ExpertGatingFuncType.SOFTMAX)

    def matrices(self) -> Sizes:
        hidden, shared = self.hidden, self.shared_experts * self.expert_width
        found: Sizes = {
            "token_embd.weight": (self.vocabulary, hidden),
            "output.weight": (self.vocabulary, hidden),
        }
        for layer in range(self.layers):
            block = f"blk.{layer}."
            found |= {
                f"{block}attn_q.weight": (self.heads * (self.plain + self.turned), hidden),
                f"{block}attn_kv_a_mqa.weight": (self.latent + self.turned, hidden),
                f"{block}attn_k_b.weight": (self.heads, self.latent, self.plain),
                f"{block}attn_v_b.weight": (self.heads, self.value, self.latent),
                f"{block}attn_output.weight": (hidden, self.heads * self.value),
            }
            if layer < self.dense_layers:
                for role in ("gate", "up"):
                    found[f"{block}ffn_{role}.weight"] = (self.feed_forward, hidden)
                found[f"{block}ffn_down.weight"] = (hidden, self.feed_forward)
                continue
            for role in ("gate", "up"):
                found[f"{block}ffn_{role}_exps.weight"] = (self.experts, self.expert_width, hidden)
                found[f"{block}ffn_{role}_shexp.weight"] = (shared, hidden)
            found[f"{block}ffn_down_exps.weight"] = (self.experts, hidden, self.expert_width)
            found[f"{block}ffn_down_shexp.weight"] = (hidden, shared)
        return found

    def routers(self) -> Sizes:
        return {
            f"blk.{layer}.ffn_gate_inp.weight": (self.experts, self.hidden)
            for layer in range(self.dense_layers, self.layers)
        }

    def vectors(self) -> dict[str, int]:
        found = {"output_norm.weight": self.hidden}
        for layer in range(self.layers):
            block = f"blk.{layer}."
            found |= {
                f"{block}attn_norm.weight": self.hidden,
                f"{block}attn_kv_a_norm.weight": self.latent,
                f"{block}ffn_norm.weight": self.hidden,
            }
        return found


SHAPES: dict[str, Shape] = {
    "qwen2-0.5b": DenseShape(
        "Qwen/Qwen2-0.5B config.json", "qwen2", 24, 896, 4864, 14, 2, 64, 151936, 1e6, True, True
    ),
    # The sizes of Qwen2-1.5B and of R1-Distill-Qwen-1.5B, whose head is a matrix of its own.
    "qwen2-1.5b": DenseShape(
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B config.json",
        "qwen2", 28, 1536, 8960, 12, 2, 128, 151936, 1e6, False, True,
    ),
    "llama-8b": DenseShape(
        "meta-llama/Llama-3.1-8B config.json",
        "llama", 32, 4096, 14336, 32, 8, 128, 128256, 5e5, False, False,
    ),
    "deepseek-v2-lite": LatentShape(
        "deepseek-ai/DeepSeek-V2-Lite config.json", "deepseek2",
        layers=27, dense_layers=1, hidden=2048, feed_forward=10944, heads=16,
        latent=512, plain=128, turned=64, value=128,
        experts=64, experts_used=6, expert_width=1408, shared_experts=2,
        vocabulary=102400, rope_base=1e4,
    ),
}  # fmt: skip
