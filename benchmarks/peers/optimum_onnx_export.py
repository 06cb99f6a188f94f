"""A checkpoint to what optimum-onnx opens: `python -m benchmarks.peers.optimum_onnx_export CHECKPOINT FOLDER`.

What `optimum-cli export onnx --task text-to-image --dtype fp32` does, but for its comparison with PyTorch afterwards,
which takes as much memory again.
"""

import sys


def main(checkpoint: str, folder: str) -> None:
    """Writes the folder."""
    from optimum.exporters.onnx import main_export

    main_export(checkpoint, folder, task="text-to-image", dtype="fp32", do_validation=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
