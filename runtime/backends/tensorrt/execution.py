"""One network at one set of shapes: its context, its buffers, and the graph that was captured of it."""

from __future__ import annotations

import logging
import math
from contextlib import ExitStack
from typing import TYPE_CHECKING

from .cuda import DeviceBuffer, Graph, PinnedBuffer
from .plan import sizes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import tensorrt as trt

    from ..protocol import Array, TensorSpec
    from .buckets import Shape
    from .device import Device
    from .plan import Plan

logger = logging.getLogger(__name__)


class Execution:
    """A context that never changes but for the address of its activations.

    A captured graph has addresses and the state of its context in it: so every set of shapes has a context and
    buffers of its own. All methods are called within a session of the device.
    """

    def __init__(self, plan: Plan, device: Device, profile: int, shapes: Mapping[str, Shape]) -> None:
        """Makes the context and the buffers.

        Args:
            plan: the engine.
            device: that it is on.
            profile: the index of one that holds the shapes.
            shapes: of every input.

        Raises:
            CudaOutOfMemoryError: there is too little memory. Nothing is kept then.
            RuntimeError: TensorRT refuses.
        """
        self._plan, self._device, self._profile = plan, device, profile
        self._network = plan.record.identity.network
        self._activations: DeviceBuffer | None = None
        self._graph: Graph | None = None
        self._runs = 0  # at the present address of the activations
        self._capturable = True
        with ExitStack() as made:
            context = plan.create_context()
            if not context.set_optimization_profile_async(profile, device.stream.address):
                raise plan.failure(f"profile {profile} cannot be chosen")
            for name, shape in shapes.items():
                if not context.set_input_shape(name, shape):
                    raise plan.failure(f"{name} cannot be {shape}")
            if unknown := context.infer_shapes():
                raise plan.failure(f"the shapes of {', '.join(unknown)} are not known")
            self._buffers: dict[str, tuple[DeviceBuffer, PinnedBuffer]] = {}
            self._arrays: dict[str, Array] = {}  # over the pinned buffers
            for spec in (*plan.inputs, *plan.outputs):
                shape = sizes(context.get_tensor_shape(spec.name))
                self._make_buffers(made, spec, shape)
                if not context.set_tensor_address(spec.name, self._buffers[spec.name][0].address):
                    raise plan.failure(f"the address of {spec.name} is refused")
            self._context: trt.IExecutionContext | None = context
            self._made = made.pop_all()

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Runs the network once.

        Args:
            inputs: an array for every input, of its dtype and of this execution's shape.
            outputs: the names wanted.

        Returns:
            The outputs, in memory of their own.
        """
        stream = self._device.stream
        self._place_activations()
        try:
            for name, array in inputs.items():
                device, pinned = self._buffers[name]
                self._arrays[name][...] = array
                stream.copy_in(device, pinned)
            self._enqueue()
            for name in outputs:
                device, pinned = self._buffers[name]
                stream.copy_out(pinned, device)
        finally:
            stream.synchronize()  # also after an error: nothing may still be copying from these buffers
        if self._runs == 1:
            self._plan.after_first_call()
        return {name: self._arrays[name].copy() for name in outputs}

    def close(self) -> None:
        """Frees the graph, the buffers and the context."""
        self._drop_graph()
        self._made.close()
        self._arrays, self._context, self._activations = {}, None, None

    def _make_buffers(self, made: ExitStack, spec: TensorSpec, shape: Shape) -> None:
        if any(size < 0 for size in shape):
            raise self._plan.failure(f"the shape of {spec.name} depends on what is computed")
        size = max(1, math.prod(shape) * spec.dtype.itemsize)
        device = DeviceBuffer(size, f"{spec.name} of {self._network}, {'x'.join(map(str, shape))}")
        made.callback(device.close)
        pinned = PinnedBuffer(size)
        made.callback(pinned.close)
        self._buffers[spec.name] = device, pinned
        self._arrays[spec.name] = pinned.array(spec.dtype, shape)

    def _place_activations(self) -> None:
        """Gives the context the arena's memory, which may be elsewhere than it was."""
        assert self._context is not None
        needed = self._plan.activation_memory(self._profile)
        activations = self._device.arena.reserve(needed, f"what {self._network} computes on the way")
        if activations is not self._activations:
            self._drop_graph()
            self._runs = 0
            self._context.set_device_memory(activations.address, activations.size)
            self._activations = activations

    def _enqueue(self) -> None:
        """Plainly the first time, which lets TensorRT settle; then by a graph."""
        self._runs += 1
        if self._graph is None and self._runs > 1 and self._capturable:
            self._capture()
        if self._graph is not None:
            self._graph.launch(self._device.stream)
            return
        self._execute()

    def _execute(self) -> None:
        assert self._context is not None
        if not self._context.execute_async_v3(self._device.stream.address):
            raise self._plan.failure("TensorRT could not run it")

    def _capture(self) -> None:
        assert self._context is not None
        stream = self._device.stream
        if not self._plan.can_be_captured(self._context, stream.address):
            return  # not yet: the next call asks again
        try:
            self._graph = stream.capture(self._execute)
        except RuntimeError as error:
            self._capturable = False
            logger.warning("%s runs without a CUDA graph, which is slower: %s", self._network, error)

    def _drop_graph(self) -> None:
        graph, self._graph = self._graph, None
        if graph is not None:
            graph.close()
