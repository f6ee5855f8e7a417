"""Every sequence of labels written out is the oracle of the forward algorithm, the backward one and Viterbi."""

import itertools

import pytest
import torch

from lora_core.models import decoding
from lora_core.models.crf import FORBIDDEN, CRFHead, crf_log_likelihood
from lora_core.models.decoding import split_scores

LABELS = 4
MASKS = [mask for length in range(1, 6) for mask in itertools.product((False, True), repeat=length)]


def viterbi(*scores):
    return torch.from_numpy(decoding.viterbi(*(part.detach().numpy() for part in scores)))


def marginals(*scores):
    return torch.from_numpy(decoding.marginals(*(part.detach().numpy() for part in scores)))


def random_scores(length, rows=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = ((rows, length, LABELS), (LABELS,), (LABELS, LABELS))
    return [torch.randn(size, generator=generator, dtype=torch.float64, requires_grad=True) for size in sizes]


def all_paths(emissions, start, transitions, mask):
    """Every sequence over the masked positions of one text, and its score."""
    places = [place for place, chained in enumerate(mask) if chained]
    for path in itertools.product(range(LABELS), repeat=len(places)):
        score = sum((emissions[place, label] for place, label in zip(places, path, strict=True)), torch.zeros(()))
        score = score + sum(transitions[i, j] for i, j in itertools.pairwise(path))
        yield path, score + start[path[0]] if path else score


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: "".join("01"[chained] for chained in mask))
def test_a_text_equals_the_enumeration_of_all_paths(mask):
    emissions, start, transitions = random_scores(len(mask), seed=len(mask))
    chained = torch.tensor(mask)
    gold = torch.randint(LABELS, (len(mask),), generator=torch.Generator().manual_seed(1)).masked_fill(~chained, -100)
    paths, scores = zip(*all_paths(emissions[0], start, transitions, mask), strict=True)
    scores = torch.stack(scores)
    expected = scores.log_softmax(0)[paths.index(tuple(gold[chained].tolist()))]
    found = crf_log_likelihood(emissions, start, transitions, gold[None], chained[None])
    torch.testing.assert_close(found, expected[None].double())

    inputs = (emissions, start, transitions)
    if chained.any():
        gradients = torch.autograd.grad(found.sum(), inputs)
        for gradient, wanted in zip(gradients, torch.autograd.grad(expected, inputs, allow_unused=True), strict=True):
            torch.testing.assert_close(gradient, torch.zeros_like(gradient) if wanted is None else wanted)

    best = viterbi(emissions, start, transitions, chained[None])[0]
    assert tuple(best[chained].tolist()) == paths[int(scores.argmax())]
    assert not best[~chained].any()

    probabilities = torch.zeros(len(mask), LABELS, dtype=torch.float64)
    for path, weight in zip(paths, scores.softmax(0), strict=True):
        for place, label in zip(chained.nonzero().flatten(), path, strict=True):
            probabilities[place, label] += weight.detach()
    torch.testing.assert_close(marginals(emissions, start, transitions, chained[None])[0].detach(), probabilities)


def test_texts_of_a_batch_do_not_see_each_other_or_the_padding():
    masks = torch.tensor([(False, *mask, *[False] * (6 - len(mask))) for mask in MASKS])
    emissions, start, transitions = random_scores(7, len(masks))
    labels = torch.randint(LABELS, masks.shape, generator=torch.Generator().manual_seed(2)).masked_fill(~masks, -100)
    together = crf_log_likelihood(emissions, start, transitions, labels, masks)
    paths, probabilities = (f(emissions, start, transitions, masks) for f in (viterbi, marginals))
    for row, mask in enumerate(masks):
        own = emissions[row : row + 1, mask]
        chained = torch.ones(own.shape[:2], dtype=torch.bool)
        alone = crf_log_likelihood(own, start, transitions, labels[row : row + 1, mask], chained)
        torch.testing.assert_close(together[row : row + 1], alone)
        assert torch.equal(paths[row, mask], viterbi(own, start, transitions, chained)[0])
        torch.testing.assert_close(probabilities[row, mask], marginals(own, start, transitions, chained)[0])


def test_gradients_equal_finite_differences():
    masks = torch.tensor([[True, True, False, True, True], [False, True, False, False, False]])
    labels = torch.tensor([[0, 3, -100, 1, 1], [-100, 2, -100, -100, -100]])
    inputs = random_scores(5, 2)
    assert torch.autograd.gradcheck(lambda *scores: crf_log_likelihood(*scores, labels, masks), inputs)


def test_the_head_packs_what_split_scores_takes_apart():
    head = CRFHead(6, LABELS, dropout=0.0)
    torch.manual_seed(0)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    hidden = torch.randn(3, 5, 6)
    emissions, start, transitions = split_scores(head(hidden, None, None))
    torch.testing.assert_close(emissions, hidden @ head.out_proj.weight.T + head.out_proj.bias)
    assert torch.equal(start, head.start.expand(3, -1))
    assert torch.equal(transitions, head.transitions.expand(3, -1, -1))
    loss = crf_log_likelihood(emissions, start, transitions, torch.zeros(3, 5, dtype=torch.int64), torch.ones(3, 5) > 0)
    loss.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in head.parameters())


def test_a_constrained_head_never_decodes_what_is_forbidden():
    allowed = torch.ones(5, 5, dtype=torch.bool)
    allowed[[0, 0, 1, 2, 3, 4], [2, 4, 4, 4, 2, 2]] = False
    torch.manual_seed(3)
    head = CRFHead(8, len(allowed), dropout=0.0)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=2.0)
    hidden, mask = torch.randn(50, 9, 8), torch.ones(50, 9, dtype=torch.bool)

    def forbidden_steps():
        paths = viterbi(*split_scores(head(hidden, None, None)), mask)
        return int((~allowed[paths[:, :-1], paths[:, 1:]]).sum())

    assert forbidden_steps() > 0
    head.constrain(allowed)
    assert forbidden_steps() == 0
    assert set(head.forbidden.unique().tolist()) == {0.0, FORBIDDEN}


def test_texts_with_transitions_of_their_own_are_as_each_alone():
    """A mixed batch gives every text the head of its own adapter."""
    alone = [random_scores(5, seed=seed) for seed in (1, 2, 3)]
    mask = torch.tensor([[True, True, False, True, True], [True, False, False, False, False], [False] * 5])
    gold = torch.tensor([[0, 3, -100, 1, 2], [2, -100, -100, -100, -100], [-100] * 5])
    together = [torch.cat([scores[0] for scores in alone])]
    together += [torch.stack([scores[part] for scores in alone]) for part in (1, 2)]
    joined = torch.cat([together[0], together[1][:, None], together[2]], 1)
    for part, expected in zip(split_scores(joined), together, strict=True):
        torch.testing.assert_close(part, expected)
    likelihood = crf_log_likelihood(*together, gold, mask)
    best, probability = viterbi(*together, mask), marginals(*together, mask)
    for row, scores in enumerate(alone):
        here = slice(row, row + 1)
        torch.testing.assert_close(likelihood[here], crf_log_likelihood(*scores, gold[here], mask[here]))
        torch.testing.assert_close(best[here], viterbi(*scores, mask[here]))
        torch.testing.assert_close(probability[here], marginals(*scores, mask[here]))
