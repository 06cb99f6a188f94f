"""What OpenVINO's errors mean: all of them are RuntimeErrors, with the places in its source above the reason."""

import re

_PLACE = re.compile(r"^(?:Exception from|Check '.*' failed at) \S+:\d+:?\s*", re.M)
_OUT_OF_MEMORY = re.compile(r"bad_alloc|out of memory|not enough memory|failed to allocate|CL_OUT_OF_", re.I)


def reason(error: Exception) -> str:
    """What an error says, without the places, in one line."""
    text = _PLACE.sub("", str(error))
    return " ".join(text.split()) or type(error).__name__


def is_out_of_memory(error: Exception) -> bool:
    """Whether the memory was used up."""
    return isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)) is not None
