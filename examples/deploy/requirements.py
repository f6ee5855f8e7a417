"""Print what serving ONNX files needs beside lora-core itself: its dependencies but for those of training and export.

pip has no way to leave out a dependency, so lora-core is installed without any, and these after it:

    pip install --no-deps lora-core
    python requirements.py > serving.txt && pip install -r serving.txt
"""

import re
from importlib.metadata import requires

TRAINING = {"torch", "ninja", "onnx", "scipy", "scikit-learn", "safetensors", "huggingface_hub", "jinja2"}
"""What `lora-core serve FILE.onnx` and `lora-core predict FILE.onnx` never import."""


def serving_requirements() -> list[str]:
    """Requirements of the installed lora-core with its extra `serve`, without TRAINING."""
    found = []
    for line in requires("lora-core") or []:
        requirement, _, marker = (part.strip() for part in line.partition(";"))
        extra = re.search(r"""extra\s*==\s*["']([\w-]+)""", marker)
        name = re.match(r"[\w.-]+", requirement)
        if name and name[0] not in TRAINING and (extra is None or extra[1] == "serve"):
            found.append(requirement)
    return found


if __name__ == "__main__":
    print("\n".join(serving_requirements()))
