from benchmarks.capacity import bench as capacity
from benchmarks.capacity.files import FORMATS


def test_files_are_really_timed() -> None:
    codings = capacity.measure_coding((96, 128))
    assert [(coding.format, coding.bits) for coding in codings] == [*FORMATS]
    assert all(coding.read >= 0 and coding.write >= 0 for coding in codings)
    sizes = {coding.name: coding.nbytes for coding in codings}
    assert sizes["JPEG 8 bits"] < sizes["PNG 8 bits"] < sizes["PNG 16 bits"] < 6.6e6
    assert sizes["PNG 16 bits"] > 3e6  # the low bits do not compress
