"""Memory that the command line keeps."""

import platform
import subprocess
import sys

import pytest


CODE = """
import resource, sys, torch
from privgen.cli.memory import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
for number in range(60):
    torch.ones(1 << 24)
    if not number:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
"""64 MiB at a time, after the first: how many pages the system has to hand over."""


def pages(how: str, **variables: str) -> int:
    call = [sys.executable, "-c", CODE, how]
    return int(subprocess.run(call, env=variables, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_freed_memory_is_kept():
    as_it_comes, kept = pages("as it comes"), pages("kept")
    assert as_it_comes > 5 * kept
    assert pages("kept", MALLOC_TRIM_THRESHOLD_="1000000", MALLOC_MMAP_THRESHOLD_="1000000") > 5 * kept
