"""7. Behaviour Cloning, the limit of CQL as α grows. Write its loss: the mean cross-entropy of the logged actions,
where weights are given their weighted mean. Its softmax is the frequency β of the logged actions, to which that of
CQL tends.

Mark it with: python -m cql exercise FILE
"""

from torch import Tensor

from cql.losses import batch_mean, conservative_penalty


def bc_loss(logits: Tensor, actions: Tensor, weights: Tensor | None = None) -> Tensor:
    """Behaviour Cloning: the mean cross-entropy of the logged actions, ``[M, B, A], [M, B] -> [M]``."""
    ...  # your lines
