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
        weight_bytes: of the matrices that a token is multiplied with; read once a step.
        inner_operations: multiplications and additions of one token in all products but the head.
        head_operations: those of the head, for a token whose logits are wanted.
        state_bytes: keys and values that one token of context adds, over all layers, while no
            window is full.
    """

    weight_bytes: int
    inner_operations: int
    head_operations: int
    state_bytes: int

    def prefill_seconds(self, tokens: int, token_budget: int, ceilings: Ceilings) -> float:
        """The least time of a prompt, to its first token, in chunks of `token_budget`."""
        steps = -(-tokens // token_budget)
        operations = tokens * self.inner_operations + self.head_operations
        return self._least(steps * self.weight_bytes, operations, ceilings)

    def decode_seconds(self, sequences: int, context: float, ceilings: Ceilings) -> float:
        """The least time of a step that gives each of so many sequences one token, after
        `context` tokens on average."""
        moved = self.weight_bytes + sequences * context * self.state_bytes
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
    sources = {source for source in model.spec.sources() if len(source.shape) == 2}
    if not model.spec.tied:  # of an untied embedding a step reads a few rows
        sources.discard(model.spec.embedding)
    matrices = [weights[source] for source in sources]
    head = 2 * _elements(weights[model.spec.head.weight].shape)
    return StepCost(
        weight_bytes=sum(matrix.nbytes for matrix in matrices),
        inner_operations=sum(2 * _elements(matrix.shape) for matrix in matrices) - head,
        head_operations=head,
        state_bytes=state_bytes_per_token(model.spec, model.engine.state_dtype),
    )


def _elements(shape: tuple[int, ...]) -> int:
    rows, columns = shape
    return rows * columns
