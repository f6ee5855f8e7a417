import numpy as np

from lora_core.models.decoding import real_logits


def test_logits_of_padding_do_not_count():
    logits = np.arange(2 * 4 * 3, dtype=np.float32).reshape(2, 4, 3)  # three tokens, and a row behind them
    mask = np.array([[1, 1, 0], [0, 0, 0]])
    assert np.array_equal(real_logits(logits, mask), logits[0, [0, 1, 3]])
    assert np.array_equal(real_logits(logits[:, 0], mask), logits[:1, 0])
    assert np.array_equal(real_logits(logits, None), logits)
