"""The devices that OpenVINO runs on, by the names that users give them."""

import re
from dataclasses import dataclass
from typing import Any, Self

import openvino

#: "gpu:1" is OpenVINO's "GPU.1"
_NAME = re.compile(r"(cpu|gpu|npu)(?::([0-9]{1,3}))?")


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device, and an OpenVINO whose properties of that device are one network's own."""

    name: str  # as OpenVINO has it: CPU, GPU, GPU.1, NPU
    core: Any  # openvino.Core, which has no types

    @classmethod
    def named(cls, device: str) -> Self:
        """The device of a name.

        Args:
            device: "cpu", "gpu", "gpu:1" or "npu".

        Raises:
            ValueError: it is no such name, or the machine has no such device; the message lists those that it has.
        """
        core = openvino.Core()
        match = _NAME.fullmatch(device)
        if match is None:
            raise ValueError(f"unknown device {device!r} for the openvino backend; it knows cpu, gpu, gpu:N and npu")
        kind, number = match[1].upper(), match[2]
        name = kind if number is None else f"{kind}.{int(number)}"
        there = core.available_devices  # a single one of a kind is GPU, several are GPU.0, GPU.1
        known = {*there, *(each.partition(".")[0] for each in there), *(f"{each}.0" for each in there)}
        if name not in known:
            has = ", ".join(each.lower().replace(".", ":") for each in there)
            raise ValueError(f"device {device!r} is not usable: OpenVINO finds {has} here")
        return cls(name=name, core=core)

    @property
    def is_cpu(self) -> bool:
        """Whether it is the CPU."""
        return self.name == "CPU"

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What OpenVINO says the device computes in, among others: FP32, BF16, FP16, INT8."""
        return tuple(self.core.get_property(self.name, "OPTIMIZATION_CAPABILITIES"))

    def property(self, name: str) -> Any:
        """One of the device's properties."""
        return self.core.get_property(self.name, name)
