"""One of several processes that use a registry: `insert_ids.py FILE WRITER INSERTS`, or `... FILE read TOTAL`."""

import sys

from privgen.watermark.registry.registry import Registry
from privgen.watermark.registry.values import IssuedFor


path, role, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
if role == "read":
    with Registry.open(path, write=False) as registry:
        seen = 0
        while seen < count:
            now = sum(1 for _ in registry.issued("alice"))
            assert now >= seen, "what was committed is gone"
            seen = now
else:
    with Registry.open(path) as registry:
        for i in range(count):
            registry.issue("alice", IssuedFor(note=f"{role}/{i}"), request=f"{role}/{i}")
assert "torch" not in sys.modules, "a registry alone should open at once"
