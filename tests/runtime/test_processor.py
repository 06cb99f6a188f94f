"""What the CPU is called, and which instruction sets it has."""

from safelight.runtime.processor import Processor, parsed

XEON = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: A Processor @ 2.0GHz
flags\t\t: fpu fma avx avx2 avx512f avx512_vnni avx512_bf16 amx_bf16 amx_tile amx_int8

processor\t: 1
model name\t: Another
flags\t\t: fpu amx_fp16
"""
ARM = """processor\t: 0
Features\t: fp asimd bf16
"""


def test_the_first_processor_is_named_with_what_it_has() -> None:
    assert str(parsed(XEON)) == (
        "A Processor @ 2.0GHz, with AVX2, AVX-512, AVX-512 VNNI, AVX-512 BF16, AMX INT8, AMX BF16"
    )


def test_arm_names_its_flags_otherwise_and_itself_not_at_all() -> None:
    assert parsed(ARM).instruction_sets == ("NEON", "BF16")
    assert parsed(ARM).name


def test_what_is_not_told_is_said_so() -> None:
    unknown = Processor(name="x", instruction_sets=())
    assert str(unknown) == "x, with instruction sets that the system does not tell"
    assert parsed("").instruction_sets == ()
