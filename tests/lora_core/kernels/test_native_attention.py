"""The C++ operators of attention against attention in fp64, sentence by sentence."""

import pytest
import torch

from lora_core.kernels.native.build import ops
from lora_core.models.layers import multi_head_attention

native = ops()
pytestmark = pytest.mark.skipif(native is None, reason="no C++ kernels here: no compiler, or LORA_CORE_NATIVE=0")


def bounds(lengths):
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)


def inputs(rows, told, width, dtype=torch.float32):
    """Query, key, value and gradient, the first three of them columns of wider rows."""
    wide = torch.randn(max(rows, told), 3 * width, dtype=dtype)
    query, key, value = wide.chunk(3, -1)
    return query[:rows], key[:told], value[:told], torch.randn(rows, width, dtype=dtype)


def both(query, key, value, grad, asked, told, heads):
    out, softmax = native.attend(query, key, value, asked, told, heads)
    return out, *native.attend_backward(grad, query, key, value, softmax, asked, told, heads)


def expected(query, key, value, grad, asked, told, heads):
    """The same by torch, in fp64."""
    found = []
    for s in range(len(asked) - 1):
        of_query, of_key = slice(asked[s], asked[s + 1]), slice(told[s], told[s + 1])
        wide = [x.double()[None].requires_grad_() for x in (query[of_query], key[of_key], value[of_key])]
        out = multi_head_attention(*wide, None, heads, 0.0)
        out.backward(grad[of_query].double()[None])
        found.append([out[0], *(x.grad[0] for x in wide)])
    return [torch.cat(part) for part in zip(*found, strict=True)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize(("heads", "size"), [(12, 32), (2, 64), (3, 10), (1, 1), (2, 33)])
@pytest.mark.parametrize("lengths", [[5, 17, 0, 40, 1, 33], [3], [16, 64, 200], [4, 8]])
def test_equals_attention_in_fp64(lengths, heads, size, dtype, tolerance):
    torch.manual_seed(0)
    ends = bounds(lengths)
    given = inputs(sum(lengths), sum(lengths), heads * size, dtype)
    for found, wanted in zip(both(*given, ends, ends, heads), expected(*given, ends, ends, heads), strict=True):
        assert found.dtype == dtype
        assert (found.double() - wanted).abs().max() <= tolerance * max(1.0, wanted.abs().max())


def test_some_tokens_ask_and_all_are_asked():
    torch.manual_seed(0)
    asked, told = bounds([1, 3, 2]), bounds([9, 3, 21])
    given = inputs(6, 33, 24)
    for found, wanted in zip(both(*given, asked, told, 2), expected(*given, asked, told, 2), strict=True):
        torch.testing.assert_close(found.double(), wanted, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("size", [1e-30, 30.0, 3000.0])
def test_scores_of_any_size(size):
    torch.manual_seed(0)
    ends = bounds([30, 2])
    query, key, value, grad = inputs(32, 32, 24)
    given = (query * size, key - 3, value, grad)
    out, dquery, _, dvalue = both(*given, ends, ends, 2)
    for found, wanted in zip(
        (out, dquery, dvalue), (expected(*given, ends, ends, 2)[i] for i in (0, 1, 3)), strict=True
    ):
        torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=2e-3)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_not_hidden(value):
    ends = bounds([5, 7])
    for number in range(3):
        given = [x.clone() for x in inputs(12, 12, 24)]
        given[number][2, 3] = value
        out, *_ = both(*given, ends, ends, 2)
        assert not out[:5, :12].isfinite().all()
        assert out[5:].isfinite().all()


def test_threads_do_not_matter():
    ends = bounds([40, 13, 22])
    given = inputs(75, 75, 384)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(both(*given, ends, ends, 12))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(map(torch.equal, other, found[0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"asked": bounds([4, 6])}, "from 0 to the number of rows"),
        ({"asked": torch.tensor([0, 9, 8, 11], dtype=torch.int32)}, "must not fall"),
        ({"asked": bounds([4, 7]).long()}, "bounds must be a contiguous CPU tensor"),
        ({"asked": bounds([4, 0, 7])}, "each sentence both"),
        ({"asked": bounds([11, 0])}, "queries and keys, or neither"),
        ({"heads": 5}, "the heads do not fit"),
        ({"heads": 0}, "the heads do not fit"),
        ({"value": torch.randn(10, 24)}, "each key has a value"),
        ({"key": torch.randn(11, 24).double()}, "key must be rows on the CPU"),
        ({"query": torch.randn(24, 11).T}, "query must be rows on the CPU"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    query, key, value, _ = inputs(11, 11, 24)
    given = {"query": query, "key": key, "value": value, "asked": bounds([4, 7]), "told": bounds([4, 7]), "heads": 2}
    with pytest.raises(RuntimeError, match=message):
        native.attend(*{**given, **change}.values())
