"""Why does a text classifier err? Pictures, words and its worst errors, of a finished run: `lora-core analysis`.

    python examples/cls_analysis.py runs/cls_agnews/bert-lora/seed-42
    torchrun examples/cls_agnews.py --models lora-attention lora-penalty \\
        --confusing-words runs/cls_agnews/bert-lora/seed-42/analysis/confusing_words.txt

Written into RUN/analysis: analysis.md, confusing_words.txt for the attention head, confusion.png and vectors.png. It
takes about 20 seconds on the sample. The words come from the validation split, so that a model may be trained with them
and tested; --split test is for looking only and writes no confusing_words.txt.
"""

import sys

from trainers.cli import main

if __name__ == "__main__":
    main(["analysis", *sys.argv[1:]])
