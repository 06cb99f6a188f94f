"""A checkpoint to what OpenVINO GenAI opens: `python -m benchmarks.peers.openvino_genai_export CHECKPOINT FOLDER`.

What `optimum-cli export openvino --task text-to-image --weight-format fp32` does, which is how its documentation makes
models: attention stays one operation, tokenizers become graphs, weights stay in float32 for every precision of the
arithmetic.
"""

import subprocess
import sys
from pathlib import Path


def main(checkpoint: str, folder: str) -> None:
    """Writes the folder.

    Raises:
        CalledProcessError: the export failed.
    """
    program = [str(Path(sys.executable).with_name("optimum-cli")), "export", "openvino"]
    options = ["--model", checkpoint, "--task", "text-to-image", "--weight-format", "fp32"]
    subprocess.run([*program, *options, folder], check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
