"""Finished classifiers vote, with weights that are fitted on validation data: `lora-core vote`.

    torchrun examples/cls_agnews.py --models bert-lora bilstm-attention --output-dir runs/agnews   # some members
    python examples/cls_vote.py runs/agnews/bert-lora/seed-42 runs/agnews/bilstm-attention/seed-42

It takes a pass of each member over validation and test data: seconds on the sample. Expect a vote of different models
to gain a point or less over its best member, and a vote of like ones nothing.
"""

import sys

from trainers.cli import main

if __name__ == "__main__":
    main(["vote", *sys.argv[1:]])
