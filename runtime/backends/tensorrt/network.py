"""A compiled network behind the protocol of the backends."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from ...engines import EngineRecord
from ...engines.flavours import Flavour
from ...engines.store import EngineStore, default_store
from ...model_folder import ModelFolder
from ..protocol import Array, TensorSpec, checked_inputs, checked_outputs
from ..recently_used import RecentlyUsed
from .buckets import choose_profile
from .cuda import CudaOutOfMemoryError
from .device import Device, device_index
from .execution import Execution
from .plan import Plan
from .refit import check_refitted, refit

#: sets of shapes whose contexts, buffers and graphs a network keeps; the one that was not used for longest goes first
MOST_EXECUTIONS = 8


class TensorRTNetwork:
    """A network that TensorRT runs. Every set of shapes has a graph of its own, captured when it comes again."""

    def __init__(self, plan: Plan, device: Device) -> None:
        """Takes a plan over.

        Args:
            plan: deserialized on the device, with all its weights.
            device: acquired for this network, which leaves it when it is closed.
        """
        self._plan, self._device = plan, device
        #: by the shapes of the inputs, in their order
        self._executions: RecentlyUsed[Execution] = RecentlyUsed(MOST_EXECUTIONS)
        # also when it is not closed: nothing but this gives the GPU's memory back
        self._closing = weakref.finalize(self, device.leave, partial(_free, self._executions, plan))

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs in graph order."""
        return self._plan.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs in graph order."""
        return self._plan.outputs

    @property
    def record(self) -> EngineRecord:
        """What was built."""
        return self._plan.record

    def takes(self, inputs: Mapping[str, Array]) -> bool:
        """Whether a profile of the engine holds inputs of these shapes."""
        shapes = {name: array.shape for name, array in inputs.items()}
        return any(profile.holds(shapes) for profile in self.record.identity.profiles)

    def __call__(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Runs the network; see `Network`.

        Raises:
            CudaOutOfMemoryError: the GPU's memory is too small for this call; a smaller one may work.
            RuntimeError: it is closed, or TensorRT or CUDA failed.
            ValueError: the inputs are not the network's, or no profile holds their shapes.
        """
        network = self.record.identity.network
        wanted = checked_outputs(network, self.outputs, outputs)
        arrays = checked_inputs(network, self.inputs, inputs)
        shapes = {name: array.shape for name, array in arrays.items()}
        profile = choose_profile(network, self.record.identity.profiles, shapes)
        with self._device.session():
            if not self._closing.alive:
                raise RuntimeError(f"{network} is closed")
            return self._run(profile, arrays, wanted)

    def close(self) -> None:
        """Gives the GPU's memory back, once a call of another thread is done."""
        self._closing()

    def _run(self, profile: int, arrays: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        shapes = {name: array.shape for name, array in arrays.items()}
        key = tuple(shapes.values())
        others = len(self._executions) - (key in self._executions)
        try:
            execution = self._executions.get(key, partial(Execution, self._plan, self._device, profile, shapes))
            return execution.run(arrays, outputs)
        except CudaOutOfMemoryError:
            self._executions.close()
            if not others:
                raise
        return self._run(profile, arrays, outputs)  # with what the other shapes had held


#: makes a flavour's plan of the module, the record, the plan's bytes and the store that they are from
MakePlan = Callable[[Flavour, EngineRecord, bytes, EngineStore], Plan]


def open_engine(
    installed: Callable[[], Flavour],
    make_plan: MakePlan,
    folder: ModelFolder,
    network: str,
    *,
    device: str,
    engines: Path | None,
) -> TensorRTNetwork:
    """Opens the engine of a network that fits this TensorRT and this GPU.

    Args:
        installed: imports the flavour.
        make_plan: of that flavour.
        folder: of the model.
        network: of the folder: "unet", "vae_decoder", ...
        device: "cuda" or "cuda:1".
        engines: the folder where the engines are; the user's cache when None.

    Raises:
        FileNotFoundError: there is no engine of the network; the message has the command that builds one.
        ValueError: another device, none of the engines fits, or the one that does is damaged.
        CudaError: there is no GPU, no driver, or too little memory.
        ModuleNotFoundError: TensorRT or CUDA's bindings are not installed.
        PermissionError: others can write the engines.
    """
    device_index(device)  # a device that is none at all is said first
    flavour = installed()
    store = default_store() if engines is None else EngineStore(engines)
    gpu = Device.acquire(device)
    with ExitStack() as opened:
        opened.callback(gpu.leave, lambda: None)
        record = store.find(
            folder,
            network,
            flavour=flavour.name,
            version=flavour.version,
            gpu=gpu.properties.compute_capability,
            gpu_name=gpu.properties.name,
        )
        content = store.read_plan(record)
        with gpu.session(), ExitStack() as making:
            plan = make_plan(flavour, record, content, store)
            making.callback(plan.close)
            if record.refittable:
                refit(plan, folder)
            making.pop_all()
        del content  # which may be gigabytes
        opened.pop_all()
        opened_network = TensorRTNetwork(plan, gpu)
    if record.refittable:
        try:
            check_refitted(opened_network, folder)
        except BaseException:
            opened_network.close()
            raise
    return opened_network


def _free(executions: RecentlyUsed[Execution], plan: Plan) -> None:
    try:
        executions.close()
    finally:
        plan.close()
