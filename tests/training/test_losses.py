"""The parts of the loss, each against the formula written out token by token."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from inspector.models.moe import Routing
from inspector.training.losses import IGNORED, inputs_and_targets, losses

ROWS = [[1, 5, 6, 7, 2], [1, 8, 2], [1, 5, 8, 2]]
V, E = 9, 4


def numbers(targets):
    return [int((targets[:, k:] != IGNORED).sum()) for k in range(targets.shape[1])]


def made_up(targets, depths=2, seed=0):
    """What a model could give: random logits, random choices of 2 of 4 experts in a layer and in the first depth."""
    generator = torch.Generator().manual_seed(seed)
    batch, length = targets.shape

    def logits(k):
        return torch.randn(batch, length - k, V, generator=generator)

    def routing(k):
        scores = torch.randn(batch, length - k, E, generator=generator)
        best, experts = scores.topk(2, dim=-1)
        return Routing(experts, best.softmax(-1), torch.rand(batch, length - k, E, generator=generator))

    return SimpleNamespace(logits=logits(0), mtp_logits=tuple(logits(k + 1) for k in range(depths)), routings=(routing(0), routing(1)))


def test_the_main_loss_is_the_mean_over_real_targets_and_alone_without_other_parts():
    _, targets = inputs_and_targets(ROWS, 0)
    output = SimpleNamespace(logits=made_up(targets).logits)
    parts = losses(output, targets, numbers(targets).__getitem__)
    assert torch.equal(parts.main, F.cross_entropy(output.logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED))
    assert parts.balance is parts.mtp is None and parts.counts == () and parts.total() is parts.main


def test_depth_k_learns_the_token_k_places_after_the_next_one():
    """Token by token: at place i of a row with inputs x_0 … x_{T−1}, depth k is asked for the row's token i + 1 + k."""
    _, targets = inputs_and_targets(ROWS, 0)
    output = made_up(targets)
    parts = losses(output, targets, numbers(targets).__getitem__, w_mtp=0.5)
    means = []
    for k, logits in enumerate(output.mtp_logits, 1):
        terms = [-logits[b, i].log_softmax(-1)[row[i + 1 + k]] for b, row in enumerate(ROWS) for i in range(len(row) - 1 - k)]
        means.append(sum(terms) / len(terms))
    torch.testing.assert_close(parts.mtp, sum(means) / 2)
    torch.testing.assert_close(parts.total(), parts.main + 0.5 * sum(means) / 2 + parts.balance)


def test_padding_is_in_no_count_and_in_no_balance():
    """Real places only, written out; of the first depth a place is real when the token that it reads is."""
    _, targets = inputs_and_targets(ROWS, 0)
    output = made_up(targets)
    parts = losses(output, targets, numbers(targets).__getitem__, w_importance=0.2, w_load=0.3)
    expected = 0.0
    for k, (routing, counts) in enumerate(zip(output.routings, parts.counts, strict=True)):
        importance, load, chosen = torch.zeros(E), torch.zeros(E), torch.zeros(E)
        for b, row in enumerate(ROWS):
            for i in range(len(row) - 1 - k):
                for expert, weight in zip(routing.experts_BTK[b, i], routing.weights_BTK[b, i], strict=True):
                    importance[expert] += weight
                    chosen[expert] += 1
                load += routing.probability_BTE[b, i]
        assert counts.tolist() == chosen.tolist()
        assert counts.sum() == 2 * numbers(targets)[k]
        for weight, sums in ((0.2, importance), (0.3, load)):
            expected += weight * sums.var(correction=0) / sums.mean() ** 2
    torch.testing.assert_close(parts.balance, expected)
    for k, routing in enumerate(output.routings):  # whatever happens at padding
        for b, row in enumerate(ROWS):
            routing.weights_BTK[b, len(row) - 1 - k :] = routing.probability_BTE[b, len(row) - 1 - k :] = 1000.0
    assert losses(output, targets, numbers(targets).__getitem__, w_importance=0.2, w_load=0.3).balance == parts.balance


@pytest.mark.parametrize("count", [2, 3])
def test_the_mean_gradient_of_shares_is_the_gradient_of_the_whole(count):
    """Parameters shift the logits and the gate's weights; ``total`` adds to a share's sums what the others hold, without gradient."""
    _, targets = inputs_and_targets(ROWS, 0)
    output = made_up(targets)
    shift = torch.linspace(-0.3, 0.4, V, dtype=torch.float64, requires_grad=True)
    scale = torch.linspace(0.5, 1.5, E, dtype=torch.float64, requires_grad=True)

    def share(rank, n):
        rows = slice(rank, None, n)

        def moved(r):
            weights = r.weights_BTK.double() * scale[r.experts_BTK]
            return Routing(r.experts_BTK[rows], weights[rows], (r.probability_BTE.double() * scale)[rows])

        return SimpleNamespace(
            logits=(output.logits.double() * shift)[rows],
            mtp_logits=tuple((logits.double() * shift)[rows] for logits in output.mtp_logits),
            routings=tuple(moved(r) for r in output.routings),
        ), targets[rows]

    options = dict(w_importance=0.4, w_load=0.7, w_mtp=0.6)
    whole = losses(*share(0, 1), numbers(targets).__getitem__, **options)
    whole.total().backward()
    expected = shift.grad.clone(), scale.grad.clone()
    sums = [[] for _ in range(count)]  # what each share sums, in the order in which it is asked
    for rank in range(count):
        losses(*share(rank, count), numbers(targets).__getitem__, **options, total=lambda x, own=sums[rank]: own.append(x.detach()) or x)
    shift.grad = scale.grad = None
    mains = []
    for rank in range(count):
        asked = iter(zip(*sums, strict=True))

        def total(x, rank=rank, asked=asked):
            parts = next(asked)
            assert torch.equal(parts[rank], x.detach())
            return x + sum(part for other, part in enumerate(parts) if other != rank)

        parts = losses(*share(rank, count), numbers(targets).__getitem__, **options, total=total)
        torch.testing.assert_close(parts.balance, whole.balance)
        (parts.total(count) / count).backward()  # the mean over the processes, as DistributedDataParallel takes it
        mains.append(parts.main.detach())
    torch.testing.assert_close(sum(mains), whole.main.detach())
    torch.testing.assert_close((shift.grad, scale.grad), expected)
