"""What a step must move and compute at least, and how long a device's ceilings let that take."""

from __future__ import annotations

from dataclasses import dataclass

from firstlight.engine.memory_plan import state_bytes_per_token
from firstlight.host.ceilings import Ceilings
from firstlight.language_model import LanguageModel


@dataclass(frozen=True)
class StepCost:
    """Of one model as it is loaded.

    Attributes:
        weight_bytes: of the matrices that every token is multiplied with; read once a step.
        inner_operations: multiplications and additions of one token in all products but the head.
        head_operations: those of the head, for a token whose logits are wanted.
        state_bytes: keys and values that one token of context adds, over all layers, while no
            window is full.
        experts: (bytes, share) of matrices of experts, and the share of tokens that go to each;
            read once a step by which some token goes to them.
    """

    weight_bytes: int
    inner_operations: int
    head_operations: int
    state_bytes: int
    experts: tuple[tuple[int, float], ...] = ()

    def read_bytes(self, tokens: int) -> float:
        """Bytes of weights that a step of so many tokens reads, if each goes to experts
        independently of the others."""
        needed = sum(size * (1 - (1 - share) ** tokens) for size, share in self.experts)
        return self.weight_bytes + needed

    def prefill_seconds(self, tokens: int, token_budget: int, ceilings: Ceilings) -> float:
        """The least time of a prompt, to its first token, in chunks of `token_budget`."""
        steps = -(-tokens // token_budget)
        operations = tokens * self.inner_operations + self.head_operations
        moved = steps * self.read_bytes(min(tokens, token_budget))
        return self._least(moved, operations, ceilings)

    def decode_seconds(self, sequences: int, context: float, ceilings: Ceilings) -> float:
        """The least time of a step that gives each of so many sequences one token, after
        `context` tokens on average."""
        moved = self.read_bytes(sequences) + sequences * context * self.state_bytes
        operations = sequences * (self.inner_operations + self.head_operations)
        return self._least(moved, operations, ceilings)

    @staticmethod
    def _least(moved: float, operations: float, ceilings: Ceilings) -> float:
        """The greater of what memory and what arithmetic need. Attention's own arithmetic is not
        counted; products count at the bfloat16 peak, or float32's where there is none."""
        matrix = ceilings.matrix_operations_per_second
        peak = matrix.get("bf16", matrix["f32"])
        return max(moved / ceilings.bandwidth_bytes_per_second, operations / peak)


def step_cost(model: LanguageModel) -> StepCost:
    """The cost of a loaded model's steps."""
    weights = model.engine.decoder.weights
    sources = {
        source for source in model.spec.sources() if len(source.shape) == 2 and not source.integers
    }
    if not model.spec.tied:  # of an untied embedding a step reads a few rows
        sources.discard(model.spec.embedding)
    head = 2 * _elements(weights[model.spec.head.weight].shape)
    shares = model.spec.expert_shares()
    experts: dict[float, int] = {}
    for source in sources & shares.keys():
        size = weights[source].nbytes
        experts[shares[source]] = experts.get(shares[source], 0) + size
    operations = sum(2 * _elements(each.shape) * shares.get(each, 1.0) for each in sources)
    return StepCost(
        weight_bytes=sum(weights[source].nbytes for source in sources - shares.keys()),
        inner_operations=round(operations) - head,
        head_operations=head,
        state_bytes=state_bytes_per_token(model.spec, model.engine.state_dtype),
        experts=tuple((size, share) for share, size in experts.items()),
    )


def _elements(shape: tuple[int, ...]) -> int:
    rows, columns = shape
    return rows * columns
