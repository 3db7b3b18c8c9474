"""python -m workers.convert CONFIG --to onnx: see `workers.weights.convert`."""

from workers.console import leave
from workers.weights.convert import main

if __name__ == "__main__":
    leave(main)
