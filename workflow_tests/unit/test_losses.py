"""The loss against nnU-Net's, against a slow version of its definition, and where it is blind."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

from panorgan.nnunet.training.losses import (
    SMOOTH,
    DiceAndCrossEntropy,
    deep_supervision_weights,
    merge_unknown,
)

CLASSES = 5
IGNORE = CLASSES


def loss_of(logits, target, unknown=None, batch_dice=False):
    loss = DiceAndCrossEntropy(batch_dice=batch_dice, ignore=IGNORE, weights=[1.0])
    return loss([logits], [target], unknown)


def random_batch(seed, shape=(2, 3, 4, 5), ignored=0.0):
    generator = torch.Generator().manual_seed(seed)
    batch, *size = shape
    logits = torch.randn(batch, CLASSES, *size, generator=generator).double().float() * 3
    target = torch.randint(0, CLASSES, (batch, 1, *size), generator=generator).short()
    target[torch.rand(target.shape, generator=generator) < ignored] = IGNORE
    return logits.requires_grad_(), target


def gradient(loss, logits):
    return torch.autograd.grad(loss, logits)[0]


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("ignored", [0.0, 0.4])
@given(seed=st.integers(0, 10_000), sides=st.lists(st.integers(1, 6), min_size=2, max_size=3))
def test_equals_nnunets_loss(batch_dice, ignored, seed, sides):
    logits, target = random_batch(seed, (2, *sides), ignored)
    theirs = DC_and_CE_loss(
        {"batch_dice": batch_dice, "smooth": SMOOTH, "do_bg": False, "ddp": False},
        {},
        ignore_label=IGNORE if ignored else None,
        dice_class=MemoryEfficientSoftDiceLoss,
    )(logits, target)
    ours = loss_of(logits, target, batch_dice=batch_dice)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        gradient(ours, logits), gradient(theirs, logits), rtol=1e-4, atol=1e-6
    )


def test_ignored_voxels_have_exactly_no_gradient():
    logits, target = random_batch(0, ignored=0.3)
    unknown = torch.zeros(2, CLASSES, dtype=torch.bool)
    unknown[1, 2] = True
    for given_unknown in (None, unknown):
        at = target[:, 0] == IGNORE
        found = gradient(loss_of(logits, target, given_unknown), logits).movedim(1, -1)
        assert at.any()
        assert (found[at] == 0).all()
        assert (found[~at] != 0).any(-1).all()


def test_what_is_ignored_does_not_matter():
    logits, target = random_batch(1, ignored=0.3)
    other = torch.where(target == IGNORE, 100.0, logits.detach()).requires_grad_()
    assert loss_of(logits, target) == loss_of(other, target)


def test_all_ignored_is_no_loss_and_no_gradient():
    logits, target = random_batch(2)
    target[:] = IGNORE
    loss = loss_of(logits, target)
    assert torch.isfinite(loss)
    assert (gradient(loss, logits) == 0).all()


def plain_marginal_loss(logits, target, unknown):
    """Cross-entropy and sample Dice by their definition, voxel by voxel, float64."""
    logits, target = logits.detach().double().numpy(), target.numpy()
    entropy, counted, dice = 0.0, 0, []
    for sample in range(len(logits)):
        known = [c for c in range(1, CLASSES) if not unknown[sample, c]]
        hits, seen, true = np.zeros(CLASSES), np.zeros(CLASSES), np.zeros(CLASSES)
        for at in np.ndindex(logits.shape[2:]):
            value = target[(sample, 0, *at)]
            if value == IGNORE:
                continue
            e = np.exp(logits[(sample, slice(None), *at)])
            p = e / e.sum()
            p[0] += sum(p[c] for c in range(1, CLASSES) if unknown[sample, c])
            entropy -= np.log(p[value])
            counted += 1
            for c in known:
                seen[c] += p[c]
                true[c] += value == c
                hits[c] += p[c] * (value == c)
        dice += [(2 * hits[c] + SMOOTH) / (seen[c] + true[c] + SMOOTH) for c in known]
    return entropy / counted - np.mean(dice)


@given(seed=st.integers(0, 10_000), data=st.data())
def test_marginal_loss_by_its_definition(seed, data):
    logits, target = random_batch(seed, (2, 3, 4), ignored=0.2)
    flags = data.draw(st.lists(st.booleans(), min_size=8, max_size=8))
    unknown = torch.tensor(flags).reshape(2, 4)
    unknown[0, 0] = False  # at least one class is known
    unknown = torch.nn.functional.pad(unknown, (1, 0))
    for sample in range(2):
        for value in range(1, CLASSES):
            if unknown[sample, value]:
                target[sample][target[sample] == value] = 0
    if (target == IGNORE).all():
        return
    expected = plain_marginal_loss(logits, target, unknown)
    found = loss_of(logits, target, unknown).item()
    assert found == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("batch_dice", [False, True])
def test_gradient_of_the_closed_form(batch_dice):
    logits, target = random_batch(3, (2, 2, 3), ignored=0.2)
    unknown = torch.zeros(2, CLASSES, dtype=torch.bool)
    unknown[0, 3] = unknown[1, 3] = unknown[1, 1] = True
    target[0][target[0] == 3] = 0
    target[1][(target[1] == 3) | (target[1] == 1)] = 0
    at = logits.detach()
    found = gradient(loss_of(logits, target, unknown, batch_dice), logits)
    step = 1e-2
    for index in np.ndindex(at.shape):
        moved = []
        for sign in (1, -1):
            other = at.clone()
            other[index] += sign * step
            moved.append(float(loss_of(other, target, unknown, batch_dice)))
        assert float(found[index]) == pytest.approx((moved[0] - moved[1]) / (2 * step), abs=1e-4)


def test_an_unknown_class_may_be_seen_in_the_background_but_not_in_an_annotated_organ():
    """Its probability joins the background's: no error there, an error elsewhere."""
    target = torch.zeros(1, 1, 1, 2, dtype=torch.int16)
    target[..., 1] = 1
    unknown = torch.tensor([[False, False, True, False, False]])
    logits = torch.zeros(1, CLASSES, 1, 2)
    logits[:, 2] = 8.0
    logits.requires_grad_()
    found = gradient(loss_of(logits, target, unknown), logits)[0, :, 0]
    assert found[2, 0] < 0  # in the background it is as welcome as the background itself
    assert found[2, 1] > 0  # in class 1 it is an error
    learnt_as_background = gradient(loss_of(logits, target), logits)[0, :, 0]
    assert learnt_as_background[2, 0] > 0


def test_a_class_unknown_in_every_sample_learns_nothing_from_background():
    logits, target = random_batch(5)
    target[target == 4] = 0
    unknown = torch.zeros(2, CLASSES, dtype=torch.bool)
    unknown[:, 4] = True
    for batch_dice in (False, True):
        alone = DiceAndCrossEntropy(batch_dice=batch_dice, ignore=IGNORE, weights=[1.0])
        with_class = alone([logits], [target], unknown)
        merged = merge_unknown(logits.detach(), unknown)
        without = torch.cat((merged[:, :4], torch.full_like(merged[:, 4:], -100.0)), 1)
        # The Dice's mean is over four classes in one and three in the other.
        other = alone([without], [target], unknown)
        torch.testing.assert_close(with_class, other)


def test_specks_of_an_unknown_class_are_background():
    logits, target = random_batch(8, ignored=0.2)
    unknown = torch.zeros(2, CLASSES, dtype=torch.bool)
    unknown[1, 4] = True
    cleaned = target.clone()
    cleaned[1][cleaned[1] == 4] = 0
    assert (cleaned != target).any()
    assert loss_of(logits, target, unknown) == loss_of(logits, cleaned, unknown)
    assert torch.isfinite(gradient(loss_of(logits, target, unknown), logits)).all()


def test_half_precision_logits_are_computed_in_float32():
    logits, target = random_batch(6)
    half = logits.detach().bfloat16().requires_grad_()
    loss = loss_of(half, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, loss_of(half.detach().float(), target))
    assert gradient(loss, half).dtype == torch.bfloat16


def test_resolutions_are_weighted_and_weight_0_is_not_computed():
    logits, target = random_batch(7)
    broken = torch.full((2, CLASSES, 1), torch.nan)
    loss = DiceAndCrossEntropy(batch_dice=False, ignore=IGNORE, weights=[0.75, 0.25, 0])
    found = loss([logits, 2 * logits, broken], [target, target, target[:, :, 0, 0, :1]])
    expected = 0.75 * loss_of(logits, target) + 0.25 * loss_of(2 * logits, target)
    torch.testing.assert_close(found, expected)


def test_deep_supervision_weights():
    assert deep_supervision_weights(1) == [1.0]
    assert deep_supervision_weights(4) == pytest.approx([4 / 7, 2 / 7, 1 / 7, 0])


def test_large_classes_are_summed_exactly():
    """A million float32 numbers that are added one by one are off by a percent."""
    target = torch.zeros(1, 1, 1_200_000, dtype=torch.int16)
    target[..., 5:] = 1
    logits = torch.zeros(1, 2, 1_200_000)
    logits[:, 1] = 0.1
    loss = DiceAndCrossEntropy(batch_dice=False, ignore=2, weights=[1.0])([logits], [target])
    p = 1 / (1 + np.exp(-0.1))
    entropy = -(5 * np.log(1 - p) + 1_199_995 * np.log(p)) / 1_200_000
    dice = 2 * 1_199_995 * p / (1_200_000 * p + 1_199_995)
    assert loss.item() == pytest.approx(entropy - dice, abs=1e-5)
