"""Dice + cross-entropy of partly known label maps.

Voxels of the ignore value count nowhere. A class that is *unknown* in a case (annotators did not
look for it) can be exempt from learning there: its probability is added to the background's, so
that it is no error to see it where the label says background, while annotated classes still
compete with it (the marginal loss of Shi et al., Medical Image Analysis 70, 2021). With nothing
ignored and nothing unknown this is nnU-Net's loss.
"""

from collections.abc import Sequence

import torch
from torch import nn

SMOOTH = 1e-5
"""Added to the Dice's numerator and denominator, as nnU-Net does."""

LANES = 256
"""Partial sums of each class."""


class DiceAndCrossEntropy(nn.Module):
    """Cross-entropy minus soft Dice without background, summed over resolutions with weights.

    Parameters
    ----------
    batch_dice : bool
        One Dice a class over the whole batch, else one for each sample.
    ignore : int
        Value of ignored voxels.
    weights : sequence of float
        Weight of each resolution, the highest first; those of weight 0 are not computed.
    """

    def __init__(self, *, batch_dice: bool, ignore: int, weights: Sequence[float]):
        super().__init__()
        self.batch_dice = batch_dice
        self.ignore = ignore
        self.weights = tuple(weights)

    def forward(
        self,
        logits: Sequence[torch.Tensor],
        target: Sequence[torch.Tensor],
        unknown: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The loss of a batch.

        Parameters
        ----------
        logits
            For each resolution (batch, classes, *size), background first; any float type.
        target
            For each resolution (batch, 1, *size) integers: a class or `ignore`.
        unknown
            (batch, classes) bool: classes that are unknown in a sample; never the background. A
            voxel of such a class in the target counts as background.

        Returns
        -------
        () float32 tensor
            A resolution without any voxel that counts adds 0.
        """
        return sum(
            weight * _one_resolution(x, y, unknown, self.batch_dice, self.ignore)
            for weight, x, y in zip(self.weights, logits, target, strict=True)
            if weight
        )


def deep_supervision_weights(resolutions: int) -> list[float]:
    """1, 1/2, 1/4, … with 0 for the lowest resolution (if there are several), divided by their sum.

    nnU-Net's rule.
    """
    weights = [2.0**-level for level in range(resolutions)]
    if resolutions > 1:
        weights[-1] = 0.0
    return [weight / sum(weights) for weight in weights]


def merge_unknown(logits: torch.Tensor, unknown: torch.Tensor) -> torch.Tensor:
    """Logits with which an unknown class has probability 0, and the background also its own.

    Parameters
    ----------
    logits
        (batch, classes, *size) float32.
    unknown
        (batch, classes) bool, False for the background.
    """
    unknown = unknown[(..., *(None for _ in logits.shape[2:]))]
    background = torch.zeros_like(unknown)
    background[:, 0] = True
    nothing = -torch.inf
    merged = logits.masked_fill(~(unknown | background), nothing).logsumexp(1, keepdim=True)
    return torch.cat((merged, logits[:, 1:].masked_fill(unknown[:, 1:], nothing)), dim=1)


def _one_resolution(
    logits: torch.Tensor,
    target: torch.Tensor,
    unknown: torch.Tensor | None,
    batch_dice: bool,
    ignore: int,
) -> torch.Tensor:
    logits, target = logits.float(), target.long()
    if unknown is None:
        unknown = torch.zeros(logits.shape[:2], dtype=torch.bool, device=logits.device)
    else:
        logits = merge_unknown(logits, unknown)
        # Specks of a class that nobody looked for: background as far as is known.
        specks = nn.functional.pad(unknown, (0, 1)).gather(1, target.flatten(1)).view_as(target)
        target = torch.where(specks, 0, target)
    return _Loss.apply(logits, target, ~unknown[:, 1:], batch_dice, ignore)


def _by_class(values: torch.Tensor, target: torch.Tensor, classes: int) -> torch.Tensor:
    """(batch, classes) sums of (batch, voxels) values, each to its voxel's class.

    Through many partial sums: one of a million float32 numbers, one by one, is off by a percent,
    and a GPU would have to add them one after the other.
    """
    lanes = torch.arange(values.shape[1], device=values.device) % LANES
    sums = values.new_zeros(len(values), LANES * classes)
    sums.scatter_add_(1, target + classes * lanes, values)
    return sums.unflatten(1, (LANES, classes)).sum(1)


class _Loss(torch.autograd.Function):
    """The loss with its gradient in closed form: it keeps the soft-max and no other volume.

    With p the soft-max, t the target's class and n the number of voxels that count, the gradient
    by a logit c is (p_c - [c = t]) / n for the cross-entropy, and p_c (g_c - sum_k p_k g_k) for the
    Dice, where g_c = a_c + [c = t] b_c, a and b being the derivatives by a class's predicted volume
    and by its intersection.
    """

    @staticmethod
    def forward(ctx, logits, target, known, batch_dice, ignore):
        shape = logits.shape
        counts = (target != ignore).flatten(2)
        target = torch.where(counts, target.flatten(2), 0)
        number = counts.sum().clamp_min(1)
        p = torch.log_softmax(logits.flatten(2), 1)
        of_target = p.gather(1, target)
        cross_entropy = -torch.where(counts, of_target, 0).sum() / number

        # What does not count has probability 0 from here on: it adds nothing to any sum below.
        weight = counts.to(p.dtype)
        p.exp_().mul_(weight)
        hit = p.gather(1, target)
        intersection = _by_class(hit[:, 0], target[:, 0], shape[1])[:, 1:]
        truth = _by_class(weight[:, 0], target[:, 0], shape[1])[:, 1:]
        predicted = p.sum(2)[:, 1:]
        if batch_dice:
            intersection, truth, predicted = (
                part.sum(0, keepdim=True) for part in (intersection, truth, predicted)
            )
            known = known.any(0, keepdim=True)
        top, bottom = 2 * intersection + SMOOTH, truth + predicted + SMOOTH
        share = known / known.sum().clamp_min(1)
        ctx.save_for_backward(p, target, weight, number)
        ctx.by_predicted = (share * top / bottom**2).expand(shape[0], -1)
        ctx.by_intersection = (-2 * share / bottom).expand(shape[0], -1)
        ctx.shape = shape
        return cross_entropy - (share * top / bottom).sum()

    @staticmethod
    def backward(ctx, grad):
        p, target, weight, number = ctx.saved_tensors
        a = nn.functional.pad(ctx.by_predicted, (1, 0))
        b = nn.functional.pad(ctx.by_intersection, (1, 0))
        b_of_target = b.gather(1, target[:, 0])[:, None]
        p_of_target = p.gather(1, target)
        mean = torch.einsum("bcn,bc->bn", p, a)[:, None] + p_of_target * b_of_target
        # At every class p (1/n + a - mean); at the target's also p b - 1/n.
        result = a[..., None] - mean
        result += 1 / number
        result *= p
        result.scatter_add_(1, target, (p_of_target * b_of_target - 1 / number) * weight)
        result *= grad
        return result.unflatten(2, ctx.shape[2:]), None, None, None, None
