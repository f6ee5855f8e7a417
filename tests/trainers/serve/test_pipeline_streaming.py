import itertools

from trainers.serve.pipeline import CHUNK_CHARACTERS, CHUNK_ITEMS, chunks


def test_items_come_in_order_and_no_more_than_a_chunk_is_read_ahead():
    read = itertools.count()
    parts = chunks(str(next(read)) for _ in range(3 * CHUNK_ITEMS))
    first = next(parts)
    assert first == [str(number) for number in range(CHUNK_ITEMS)]
    assert next(read) == CHUNK_ITEMS
    assert len(next(parts)) == CHUNK_ITEMS


def test_long_texts_fill_a_chunk_early():
    texts = ["x" * (CHUNK_CHARACTERS // 2)] * 5
    assert [len(part) for part in chunks(texts)] == [2, 2, 1]
    words = [["x"] * (CHUNK_CHARACTERS // 8)] * 2
    assert [len(part) for part in chunks(words)] == [1, 1]
    assert list(chunks([])) == []
