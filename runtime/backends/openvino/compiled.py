"""A network compiled for one set of shapes, and how many of those are kept."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..protocol import Array

#: of compiled networks, in bytes, that are kept of one network; each has a copy of the weights, in an order of its own
_MOST_BYTES = 4_000_000_000
#: and how many: a picture with guidance in part of its steps alternates between two
_FEWEST, _MOST = 2, 16
#: bytes of a weight in a compiled network
_WIDTHS = {"fp32": 4, "bf16": 2, "fp16": 2}


class CompiledNetwork:
    """A compiled network with the one request that its calls take turns in."""

    def __init__(self, compiled: Any) -> None:
        """Makes the request.

        Args:
            compiled: openvino.CompiledModel.
        """
        self._request: Any = compiled.create_infer_request()

    def run(self, arrays: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Runs it on arrays that are read where they lie; the results are copies.

        Raises:
            Exception: whatever OpenVINO raises.
        """
        found = self._request.infer(dict(arrays), share_inputs=True, share_outputs=True)
        return {name: np.array(found[name]) for name in outputs}

    def close(self) -> None:
        """Drops the request, and with it the compiled network and its memory."""
        self._request = None


def kept(elements: int, precision: str) -> int:
    """How many compiled networks are kept of a network.

    Args:
        elements: of its weights.
        precision: that it computes in.
    """
    return max(_FEWEST, min(_MOST, _MOST_BYTES // max(1, elements * _WIDTHS[precision])))
