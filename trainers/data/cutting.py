"""Where to cut sentences into windows, and which window predicts which word."""

import numpy as np

from trainers.data.pieces import WordPieces


def cut_windows(pieces: WordPieces) -> np.ndarray:
    """All windows, (N, 5) int64: sentence, start, end, owned start, owned end.

    Start and end count the words of the whole text. A window sees the words from start to end and predicts
    those from owned start to owned end; over the windows of a sentence every word is predicted exactly once.
    """
    starts, ends = pieces.sentence_offsets[:-1], pieces.sentence_offsets[1:]
    sentence = np.arange(len(starts))
    whole = np.stack([sentence, starts, ends, starts, ends], axis=1)  # (sentences, 5)
    too_long = np.flatnonzero(pieces.cumulative[ends] - pieces.cumulative[starts] > pieces.capacity)
    if too_long.size == 0:
        return whole
    rows = np.split(whole, too_long)
    for place, index in enumerate(too_long, start=1):
        first = starts[index]
        cut = cut_sentence(pieces.cumulative[first : ends[index] + 1], pieces.capacity)
        cut_rows = np.column_stack([np.full(len(cut), index), cut + first])
        rows[place] = np.concatenate([cut_rows, rows[place][1:]])
    return np.concatenate(rows)


def cut_sentence(cumulative: np.ndarray, capacity: int) -> np.ndarray:
    """Windows of one long sentence: (windows, 4) of start, end, owned start, owned end, in words.

    `cumulative` (words + 1,): pieces of the text before each word, and at the end. Neighbours share about a
    third of a window, so a word between two windows keeps at least about a sixth of a window as context on
    either side.
    """
    words = len(cumulative) - 1
    overlap = capacity // 3
    windows: list[tuple[int, int]] = []
    start = end = 0
    while True:
        end = int(np.searchsorted(cumulative, cumulative[start] + capacity, side="right")) - 1
        if end == words:  # the last window reaches back as far as it can: more context at the same price
            start = int(np.searchsorted(cumulative, cumulative[words] - capacity))
        windows.append((start, end))
        if end == words:
            break
        # Share `overlap` pieces, but leave room for the next word, however many pieces it has.
        reach = max(cumulative[end] - overlap, cumulative[end + 1] - capacity)
        start = int(np.searchsorted(cumulative, reach))

    owner = np.zeros(words, dtype=np.int64)
    best = np.full(words, -1, dtype=np.int64)
    for index, (start, end) in enumerate(windows):
        left = cumulative[start:end] - cumulative[start]
        right = cumulative[end] - cumulative[start + 1 : end + 1]
        centrality = np.minimum(left, right)  # pieces of context on the poorer side
        better = centrality > best[start:end]
        best[start:end][better] = centrality[better]
        owner[start:end][better] = index
    # A word nearer to a later window's centre is followed by words nearer still: `owner` never falls.
    owners, owned_start, counts = np.unique(owner, return_index=True, return_counts=True)
    return np.column_stack([np.array(windows)[owners], owned_start, owned_start + counts])
