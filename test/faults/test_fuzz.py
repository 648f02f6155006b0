"""What fuzzing found, read again; and a moment of it anew."""

import random

import pytest
from fuzz import FOUND, TARGETS, read_one, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

CASES = [(path.parent.name, path) for path in sorted(FOUND.glob("*/*"))]


@pytest.mark.parametrize(("target", "path"), CASES, ids=[f"{target}/{path.name[:20]}" for target, path in CASES])
def test_what_was_found_is_mended(target, path):
    read_one(target, path.read_bytes())


def damaged(data: bytes, generator: random.Random) -> bytes:
    """A few bytes changed, taken away, doubled or put in, or the end cut off."""
    content = bytearray(data)
    for _ in range(generator.randint(1, 4)):
        at = generator.randint(0, len(content))
        size = generator.choice((1, 2, 5, 40))
        how = generator.choice(("flip", "remove", "double", "insert", "cut"))
        if how == "flip" and at < len(content):
            content[at] ^= 1 << generator.randint(0, 7)
        elif how == "remove":
            del content[at : at + size]
        elif how == "double":
            content[at:at] = content[at : at + size]
        elif how == "insert":
            content[at:at] = generator.choice((bytes(size), b"\xff" * size, b"99999999999", b"-1", b"nan", b"\n", b" "))
        elif generator.random() < 0.3:
            del content[at:]
    return bytes(content)


@pytest.mark.parametrize("target", TARGETS)
def test_damaged_input_is_read_or_refused(target):
    valid = seeds()[target]

    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(st.sampled_from(range(len(valid))), st.randoms(use_true_random=False))
    def check(which, generator):
        read_one(target, damaged(valid[which], generator))

    for data in valid:
        read_one(target, data)
    check()
