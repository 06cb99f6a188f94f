"""TensorRT and TensorRT for RTX: engines that `safelight build` compiled, run on an NVIDIA GPU.

`cuda` is memory, streams and graphs; `device` what all engines on a GPU share; `plan` and `rtx` an engine as TensorRT
has it; `refit` the weights of an engine that was built without them; `buckets` which of its profiles takes a call;
`execution` one set of shapes with its buffers and its captured graph; `network` all of that behind the protocol.
"""
