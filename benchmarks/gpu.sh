#!/usr/bin/env bash
# What this library does on a GPU, in under nine minutes and without a network: benchmarks/gpu.sh
#
# It needs the torch, transformers and peft that are there. Pure Python packages that are missing are looked for in the
# folders that GPU_PYTHONPATH names (separated by colons), behind what is installed. benchmarks/README.md says more.
#
#   benchmarks/gpu.sh [--out FOLDER] [--seconds 530] [--only WORDS...]
#   benchmarks/gpu.sh --device cpu          # tries all of it, with tiny models
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH="$(dirname "$here")${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" "$here/gpu.py" "$@"
